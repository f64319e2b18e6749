/*
 * kunlun_kernels.h: GDPA and its neighbours on NVIDIA GPUs, compiled ahead of time, behind a C ABI.
 *
 * libkunlun_kernels.so holds one cubin per kernel variant and compute capability (8.0, 8.6, 8.9, 9.0, 10.0, 12.0), and PTX
 * of 8.0 that the driver compiles for any other GPU of 8.0 or later. It needs no CUDA toolkit and no CUDA runtime: it opens
 * libcuda.so.1 at the first call that needs it, and nothing when it is loaded, so it can be linked and loaded anywhere.
 *
 * How to use it
 *
 *   1. Make a CUDA context current on the calling thread (cudaSetDevice and any runtime call, torch, TensorRT all do).
 *   2. Fill a parameter struct: zero it, set `version` to the struct's macro, set the fields.
 *   3. Outside the hot path, once per context and shape family: kunlun_gdpa_prepare(&params). It loads the module.
 *   4. kunlun_gdpa_forward(&params, stream), as often as wanted, from any thread, also while `stream` is being captured
 *      into a CUDA graph. A launch allocates nothing, loads nothing and never waits for the device.
 *
 * Every function returns KUNLUN_OK (0) or another kunlun_status; kunlun_last_error() then says on the same thread what was
 * expected, what was found and what to change. Nothing is written on errors. All pointers in a parameter struct are
 * addresses in device memory, aligned to 16 bytes, except where a field says otherwise; the structs themselves live on the
 * host and may be reused as soon as a call returns. Offsets and indices are read on the device and are not validated: a
 * launch that checked them would have to wait for them.
 */
#ifndef KUNLUN_KERNELS_H
#define KUNLUN_KERNELS_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define KUNLUN_API __attribute__((visibility("default")))
#else
#define KUNLUN_API
#endif

/* Changes when a function or a struct changes incompatibly; compare it with kunlun_kernels_abi(). */
#define KUNLUN_KERNELS_ABI 1

/* The same type as CUstream and cudaStream_t; NULL is the default stream. */
typedef struct CUstream_st* kunlun_stream;

typedef enum kunlun_status {
  KUNLUN_OK = 0,
  KUNLUN_INVALID_ARGUMENT = 1,    /* a field is out of range, misaligned or NULL; the message names it */
  KUNLUN_BAD_VERSION = 2,         /* params->version is of another library, or was not set */
  KUNLUN_UNSUPPORTED_VARIANT = 3, /* no kernel for this dtype, width, n_kv and activation; the message lists them */
  KUNLUN_NO_DRIVER = 4,           /* libcuda.so.1 is absent, too old, or finds no GPU */
  KUNLUN_UNSUPPORTED_DEVICE = 5,  /* the GPU is older than compute capability 8.0 */
  KUNLUN_NO_CONTEXT = 6,          /* no CUDA context is current on this thread */
  KUNLUN_NOT_PREPARED = 7,        /* launched before it was prepared in this context */
  KUNLUN_DRIVER_ERROR = 8         /* a driver call failed; the message has its name and text */
} kunlun_status;

typedef enum kunlun_dtype { KUNLUN_F32 = 0, KUNLUN_F16 = 1, KUNLUN_BF16 = 2 } kunlun_dtype;

typedef enum kunlun_activation {
  KUNLUN_RAW = 0,
  KUNLUN_RELU = 1,
  KUNLUN_LEAKY_RELU = 2,
  KUNLUN_RELU_SQUARE = 3,
  KUNLUN_GELU = 4,
  KUNLUN_FAST_GELU = 5,
  KUNLUN_SILU = 6,
  KUNLUN_HARDSWISH = 7
} kunlun_activation;

/*
 * GDPA, O_h = scale_out * Act(scale_in * Q_h K_h^T) V_h, on jagged queries (arXiv:2602.10016, Fig. 1). All samples' rows lie
 * one after the other; samples may be empty:
 *
 *   q, out     [rows, heads, head_width]           sample i owns rows q_offsets[i] .. q_offsets[i + 1] - 1
 *   k, v       [blocks * n_kv, heads, head_width]  dense blocks; with n_kv = 0 block j owns rows k_offsets[j] .. k_offsets[j + 1] - 1
 *
 * With block = 1 the PFFN block is computed: LayerNorm, GDPA, inner residual, RMSNorm, outer residual; both norms span all
 * heads of a row.
 */
typedef struct kunlun_gdpa_params {
  uint32_t version; /* KUNLUN_GDPA_PARAMS_V1 */
  int32_t dtype;    /* kunlun_dtype of q, k, v and out */
  int32_t activation;
  int32_t block; /* 0: GDPA alone, 1: the PFFN block */
  const void* q;
  const void* k;
  const void* v;
  void* out;                /* may not overlap the inputs */
  const int32_t* q_offsets; /* [samples + 1]; index arrays are aligned to 4 bytes */
  const int32_t* q_lengths; /* [samples] or NULL: valid rows of each sample when the rest is padding, which is left unwritten */
  const int32_t* k_offsets; /* [blocks + 1] when n_kv is 0, else NULL */
  const int32_t* kv_index;  /* [samples] or NULL: the block that a sample reads; NULL: sample i reads block i */
  const int32_t* units;     /* [unit_count, 2] or NULL: a work list of (sample, first row), sample -1: nothing to do */
  int32_t unit_count;       /* 0 without a work list */
  int32_t max_length;       /* without a work list: no sample is longer. It sizes the grid; too much costs empty blocks */
  int32_t samples;          /* 0 is allowed, as is max_length 0: nothing is launched */
  int32_t heads;
  int32_t head_width;
  int32_t n_kv; /* rows of a dense K/V block, or 0 */
  float scale_in;
  float scale_out;
  float eps;         /* of both norms; block = 1 only */
  uint32_t reserved; /* 0 */
} kunlun_gdpa_params;

/* Version 1 in the top byte, the size below it: a struct of another layout is refused, never misread. */
#define KUNLUN_GDPA_PARAMS_V1 (0x01000000u | (uint32_t)sizeof(kunlun_gdpa_params))

/* Loads what kunlun_gdpa_forward(params) would launch into the current context. Idempotent; takes milliseconds where a
 * cubin fits and up to seconds where PTX is compiled (the driver keeps the result in its own cache). Pointers in params may
 * still be NULL. Not while a stream of this thread is being captured. */
KUNLUN_API kunlun_status kunlun_gdpa_prepare(const kunlun_gdpa_params* params);

/* Query rows per entry of a work list, for the kernel that kunlun_gdpa_prepare(params) has loaded. Worth using for batches of
 * very different lengths: list the longest samples first, ceil(length / rows) entries each, and no block is empty. */
KUNLUN_API kunlun_status kunlun_gdpa_unit_rows(const kunlun_gdpa_params* params, int32_t* rows);

/* Enqueues the kernel on `stream` of the current context. */
KUNLUN_API kunlun_status kunlun_gdpa_forward(const kunlun_gdpa_params* params, kunlun_stream stream);

/*
 * Sliding-window self-attention on jagged rows, softmax(scale * Q_h K_h^T) V_h over keys with |i - j| <= window of the same
 * sample. q, k, v [rows, heads, head_width] may be slices of one fused tensor: strides are in elements, columns adjoin.
 */
typedef struct kunlun_window_params {
  uint32_t version; /* KUNLUN_WINDOW_PARAMS_V1 */
  int32_t dtype;    /* kunlun_dtype of q, k, v and out */
  const void* q;
  const void* k;
  const void* v;
  void* out;              /* [rows, heads, head_width], contiguous */
  float* lse;             /* [rows, heads] or NULL: log-sum-exp of each row's scaled scores */
  const int32_t* offsets; /* [samples + 1] */
  const int32_t* units;   /* [unit_count, 2] or NULL, as in kunlun_gdpa_params */
  int32_t unit_count;
  int32_t max_length;
  int32_t samples;
  int32_t heads;
  int32_t head_width;
  int32_t window;
  int32_t q_row, q_head, k_row, k_head, v_row, v_head; /* strides, multiples of 16 */
  float scale;                                         /* usually 1 / sqrt(head_width) */
  uint32_t reserved;                                   /* 0 */
} kunlun_window_params;

#define KUNLUN_WINDOW_PARAMS_V1 (0x01000000u | (uint32_t)sizeof(kunlun_window_params))

/* As their namesakes of GDPA. */
KUNLUN_API kunlun_status kunlun_window_prepare(const kunlun_window_params* params);
KUNLUN_API kunlun_status kunlun_window_unit_rows(const kunlun_window_params* params, int32_t* rows);
KUNLUN_API kunlun_status kunlun_window_forward(const kunlun_window_params* params, kunlun_stream stream);

/*
 * Seed pooling: every sample's rows attended to by the same seeds [n_seeds, heads, head_width] (contiguous),
 * softmax(scale * S_h K_h^T) V_h. A sample without rows pools to 0.
 */
typedef struct kunlun_seed_pooling_params {
  uint32_t version; /* KUNLUN_SEED_POOLING_PARAMS_V1 */
  int32_t dtype;    /* kunlun_dtype of seeds, k, v and out */
  const void* seeds;
  const void* k; /* [rows, heads, head_width] with strides as below */
  const void* v;
  void* out;              /* [samples, n_seeds, heads, head_width], contiguous */
  float* lse;             /* [samples, n_seeds, heads] or NULL */
  const int32_t* offsets; /* [samples + 1] */
  const int32_t* order;   /* [samples] or NULL: in which order samples are worked on, best longest first */
  int32_t samples;
  int32_t n_seeds;
  int32_t heads;
  int32_t head_width;
  int32_t k_row, k_head, v_row, v_head; /* strides in elements, multiples of 16 */
  float scale;
  uint32_t reserved; /* 0 */
} kunlun_seed_pooling_params;

#define KUNLUN_SEED_POOLING_PARAMS_V1 (0x01000000u | (uint32_t)sizeof(kunlun_seed_pooling_params))

/* As their namesakes of GDPA. */
KUNLUN_API kunlun_status kunlun_seed_pooling_prepare(const kunlun_seed_pooling_params* params);
KUNLUN_API kunlun_status kunlun_seed_pooling_forward(const kunlun_seed_pooling_params* params, kunlun_stream stream);

/* Loads every variant for the current context's GPU: for servers that want all loading done before they are ready. */
KUNLUN_API kunlun_status kunlun_prepare_all(void);

/* Forces the PTX of compute capability 8.0 in every context prepared from now on (1), or lets cubins be used (0, default).
 * For tests of the path that GPUs newer than this library take. */
KUNLUN_API void kunlun_force_ptx(int on);

/* What the last failing call on this thread has to say; never NULL, "" if none failed. Valid until the thread's next call. */
KUNLUN_API const char* kunlun_last_error(void);

/* KUNLUN_KERNELS_ABI of the library. */
KUNLUN_API int kunlun_kernels_abi(void);

/* JSON: what the library holds, as {"version", "ptx": SM of the text images, "variants": {name: {"family", "sm": [...]}}}.
 * Static; needs no driver. */
KUNLUN_API const char* kunlun_kernels_manifest(void);

#ifdef __cplusplus
}
#endif
#endif
