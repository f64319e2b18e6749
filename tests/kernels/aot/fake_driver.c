/* A libcuda.so.1 without a GPU: records what a launcher asks for and answers as the driver would. For tests only.
 *
 * Kernel parameters are copied the way the driver copies them: `sizes[i]` bytes from the i-th address to `offsets[i]`,
 * where sizes and offsets are what the loaded cubin says (the test reads them from the image that was handed over). */
#include <string.h>

typedef int CUresult;
enum { SUCCESS = 0, NO_BINARY = 209, INVALID_CONTEXT = 201 };

struct launch {
  unsigned grid[3], block[3], shared;
  unsigned long long stream, function;
  unsigned char parameters[512];
};

int fake_major = 8, fake_minor = 0, fake_init_result = 0, fake_refuse_cubins = 0, fake_refuse_functions = 0, fake_refuse_shared = 0;
unsigned long long fake_context = 1, fake_context_id = 1;
int fake_modules = 0, fake_loads = 0, fake_unloads = 0;
const void* fake_images[64];
char fake_kernels[64][128];
int fake_dynamic_shared[64];
int fake_parameter_count = 0;
unsigned fake_sizes[64], fake_offsets[64];
int fake_launches = 0;
struct launch fake_last;

CUresult cuInit(unsigned flags) { return (void)flags, fake_init_result; }
CUresult cuGetErrorName(CUresult r, const char** s) { return *s = r == NO_BINARY ? "CUDA_ERROR_NO_BINARY_FOR_GPU" : "CUDA_ERROR", SUCCESS; }
CUresult cuGetErrorString(CUresult r, const char** s) { return (void)r, *s = "as the fake driver was told", SUCCESS; }
CUresult cuCtxGetCurrent(void** c) { return *c = (void*)fake_context, SUCCESS; }
CUresult cuCtxGetId(void* c, unsigned long long* id) { return (void)c, *id = fake_context_id, SUCCESS; }
CUresult cuCtxGetDevice(int* d) { return *d = 0, SUCCESS; }
CUresult cuDeviceGetAttribute(int* v, int a, int d) {
  (void)d;
  *v = a == 75 ? fake_major : a == 76 ? fake_minor : a == 97 ? 232448 : 0;
  return SUCCESS;
}
CUresult cuModuleLoadDataEx(void** m, const void* image, unsigned n, int* o, void** v) {
  (void)n, (void)o, (void)v;
  ++fake_loads;
  if (fake_refuse_cubins && !memcmp(image, "\177ELF", 4)) return fake_refuse_cubins;
  if (fake_modules == 64) return 2;
  fake_images[fake_modules] = image;
  *m = (void*)(unsigned long long)(0x1000 + fake_modules++);
  return SUCCESS;
}
CUresult cuModuleUnload(void* m) { return (void)m, ++fake_unloads, SUCCESS; }
CUresult cuModuleGetFunction(void** f, void* m, const char* name) {
  if (fake_refuse_functions) return 500;
  unsigned long long module = (unsigned long long)m - 0x1000;
  strncpy(fake_kernels[module], name, 127);
  *f = (void*)(0x2000 + module);
  return SUCCESS;
}
CUresult cuFuncSetAttribute(void* f, int attribute, int value) {
  if (attribute != 8 || fake_refuse_shared) return 1;
  fake_dynamic_shared[(unsigned long long)f - 0x2000] = value;
  return SUCCESS;
}
static CUresult record(void* f, const unsigned* grid, const unsigned* block, unsigned shared, void* stream, void** parameters) {
  memset(&fake_last, 0, sizeof fake_last);
  memcpy(fake_last.grid, grid, 12), memcpy(fake_last.block, block, 12);
  fake_last.shared = shared;
  fake_last.stream = (unsigned long long)stream, fake_last.function = (unsigned long long)f - 0x2000;
  for (int i = 0; i < fake_parameter_count; ++i) memcpy(fake_last.parameters + fake_offsets[i], parameters[i], fake_sizes[i]);
  return ++fake_launches, SUCCESS;
}
CUresult cuLaunchKernel(void* f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned shared, void* stream, void** parameters, void** extra) {
  unsigned grid[] = {gx, gy, gz}, block[] = {bx, by, bz};
  return (void)extra, record(f, grid, block, shared, stream, parameters);
}
