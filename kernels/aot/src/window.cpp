// The C entries of sliding-window attention: validate, then hand over to the launcher.
#include "launcher.h"
#include "validate.h"

namespace {

using namespace kunlun;

kunlun_status check_struct(const kunlun_window_params* p) {
  if (!p) return fail(KUNLUN_INVALID_ARGUMENT, "params is NULL");
  if (const kunlun_status status = check_version(p->version, KUNLUN_WINDOW_PARAMS_V1, "KUNLUN_WINDOW_PARAMS_V1")) return status;
  return check_ranges({
      {"dtype", p->dtype, KUNLUN_F32, KUNLUN_BF16},
      {"unit_count", p->unit_count, 0, INT32_MAX},
      {"max_length", p->max_length, 0, INT32_MAX},
      {"samples", p->samples, 0, INT32_MAX - 1},
      {"heads", p->heads, 1, 65535},
      {"head_width", p->head_width, 1, 1024},
      {"window", p->window, 0, 1 << 30},
      {"reserved", static_cast<int32_t>(p->reserved), 0, 0},
  });
}

kunlun_status check_pointers(const kunlun_window_params* p) {
  if (const kunlun_status status = check_addresses({
          {"q", p->q, 16, false},
          {"k", p->k, 16, false},
          {"v", p->v, 16, false},
          {"out", p->out, 16, false},
          {"lse", p->lse, 4, true},
          {"offsets", p->offsets, 4, false},
          {"units", p->units, 4, p->unit_count == 0},
      }))
    return status;
  if (p->units && !p->unit_count)
    return fail(KUNLUN_INVALID_ARGUMENT, "params->unit_count is 0 beside a work list, expected its length");
  return check_strides({
      {"q_row", p->q_row, 0, 0},
      {"q_head", p->q_head, 0, 0},
      {"k_row", p->k_row, 0, 0},
      {"k_head", p->k_head, 0, 0},
      {"v_row", p->v_row, 0, 0},
      {"v_head", p->v_head, 0, 0},
  });
}

}  // namespace

extern "C" {

kunlun_status kunlun_window_prepare(const kunlun_window_params* params) {
  if (const kunlun_status status = check_struct(params)) return status;
  return prepare(Family::kWindowForward, params);
}

kunlun_status kunlun_window_unit_rows(const kunlun_window_params* params, int32_t* rows) {
  if (const kunlun_status status = check_struct(params)) return status;
  if (!rows) return fail(KUNLUN_INVALID_ARGUMENT, "rows is NULL, expected where to write the answer");
  return unit_rows(Family::kWindowForward, params, rows);
}

kunlun_status kunlun_window_forward(const kunlun_window_params* params, kunlun_stream stream) {
  if (const kunlun_status status = check_struct(params)) return status;
  if (params->samples == 0 || (params->max_length == 0 && params->unit_count == 0)) return KUNLUN_OK;
  if (const kunlun_status status = check_pointers(params)) return status;
  return launch(Family::kWindowForward, params, stream);
}

}  // extern "C"
