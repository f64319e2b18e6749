// The C entries of GDPA: validate, then hand over to the launcher.
#include "launcher.h"
#include "validate.h"

namespace {

using namespace kunlun;

kunlun_status check_struct(const kunlun_gdpa_params* p) {
  if (!p) return fail(KUNLUN_INVALID_ARGUMENT, "params is NULL");
  if (const kunlun_status status = check_version(p->version, KUNLUN_GDPA_PARAMS_V1, "KUNLUN_GDPA_PARAMS_V1")) return status;
  return check_ranges({
      {"dtype", p->dtype, KUNLUN_F32, KUNLUN_BF16},
      {"activation", p->activation, KUNLUN_RAW, KUNLUN_HARDSWISH},
      {"block", p->block, 0, 1},
      {"unit_count", p->unit_count, 0, INT32_MAX},
      {"max_length", p->max_length, 0, INT32_MAX},
      {"samples", p->samples, 0, INT32_MAX - 1},
      {"heads", p->heads, 1, 65535},
      {"head_width", p->head_width, 1, 1024},
      {"n_kv", p->n_kv, 0, INT32_MAX},
      {"reserved", static_cast<int32_t>(p->reserved), 0, 0},
  });
}

kunlun_status check_pointers(const kunlun_gdpa_params* p) {
  if (const kunlun_status status = check_addresses({
          {"q", p->q, 16, false},
          {"k", p->k, 16, false},
          {"v", p->v, 16, false},
          {"out", p->out, 16, false},
          {"q_offsets", p->q_offsets, 4, false},
          {"q_lengths", p->q_lengths, 4, true},
          {"k_offsets", p->k_offsets, 4, p->n_kv != 0},
          {"kv_index", p->kv_index, 4, true},
          {"units", p->units, 4, p->unit_count == 0},
      }))
    return status;
  if (p->k_offsets && p->n_kv)
    return fail(KUNLUN_INVALID_ARGUMENT, "params->n_kv is %d beside k_offsets, expected 0: blocks are dense or jagged, not both", p->n_kv);
  if (p->units && !p->unit_count)
    return fail(KUNLUN_INVALID_ARGUMENT, "params->unit_count is 0 beside a work list, expected its length");
  return KUNLUN_OK;
}

}  // namespace

extern "C" {

kunlun_status kunlun_gdpa_prepare(const kunlun_gdpa_params* params) {
  if (const kunlun_status status = check_struct(params)) return status;
  return prepare(Family::kGdpaForward, params);
}

kunlun_status kunlun_gdpa_unit_rows(const kunlun_gdpa_params* params, int32_t* rows) {
  if (const kunlun_status status = check_struct(params)) return status;
  if (!rows) return fail(KUNLUN_INVALID_ARGUMENT, "rows is NULL, expected where to write the answer");
  return unit_rows(Family::kGdpaForward, params, rows);
}

kunlun_status kunlun_gdpa_forward(const kunlun_gdpa_params* params, kunlun_stream stream) {
  if (const kunlun_status status = check_struct(params)) return status;
  if (params->samples == 0 || (params->max_length == 0 && params->unit_count == 0)) return KUNLUN_OK;
  if (const kunlun_status status = check_pointers(params)) return status;
  return launch(Family::kGdpaForward, params, stream);
}

}  // extern "C"
