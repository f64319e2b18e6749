// The C entries of seed pooling: validate, then hand over to the launcher.
#include "launcher.h"
#include "validate.h"

namespace {

using namespace kunlun;

kunlun_status check_struct(const kunlun_seed_pooling_params* p) {
  if (!p) return fail(KUNLUN_INVALID_ARGUMENT, "params is NULL");
  if (const kunlun_status status = check_version(p->version, KUNLUN_SEED_POOLING_PARAMS_V1, "KUNLUN_SEED_POOLING_PARAMS_V1"))
    return status;
  return check_ranges({
      {"dtype", p->dtype, KUNLUN_F32, KUNLUN_BF16},
      {"samples", p->samples, 0, INT32_MAX - 1},
      {"n_seeds", p->n_seeds, 1, INT32_MAX},
      {"heads", p->heads, 1, 65535},
      {"head_width", p->head_width, 1, 1024},
      {"reserved", static_cast<int32_t>(p->reserved), 0, 0},
  });
}

kunlun_status check_pointers(const kunlun_seed_pooling_params* p) {
  if (const kunlun_status status = check_addresses({
          {"seeds", p->seeds, 16, false},
          {"k", p->k, 16, false},
          {"v", p->v, 16, false},
          {"out", p->out, 16, false},
          {"lse", p->lse, 4, true},
          {"offsets", p->offsets, 4, false},
          {"order", p->order, 4, true},
      }))
    return status;
  return check_strides({
      {"k_row", p->k_row, 0, 0},
      {"k_head", p->k_head, 0, 0},
      {"v_row", p->v_row, 0, 0},
      {"v_head", p->v_head, 0, 0},
  });
}

}  // namespace

extern "C" {

kunlun_status kunlun_seed_pooling_prepare(const kunlun_seed_pooling_params* params) {
  if (const kunlun_status status = check_struct(params)) return status;
  return prepare(Family::kSeedPooling, params);
}

kunlun_status kunlun_seed_pooling_forward(const kunlun_seed_pooling_params* params, kunlun_stream stream) {
  if (const kunlun_status status = check_struct(params)) return status;
  if (params->samples == 0) return KUNLUN_OK;
  if (const kunlun_status status = check_pointers(params)) return status;
  return launch(Family::kSeedPooling, params, stream);
}

}  // extern "C"
