// What a process needs to believe in two CUDA devices: torch's device guard, and a driver that takes notes.
//
// The driver is enough of libcuda.so.1 for Triton's host half to compile, load and launch; each load and launch is told
// to a callback. Whether a thread is relaxed during captures (cuThreadExchangeStreamCaptureMode) is real.
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <utility>
#include "cuda.h"

constexpr auto CUDA = c10::DeviceType::CUDA;

struct Guard final : c10::impl::NoOpDeviceGuardImpl<CUDA> {
  c10::DeviceIndex deviceCount() const noexcept override { return 2; }
  c10::Device getDevice() const override { return {CUDA, 0}; }
  c10::Device exchangeDevice(c10::Device) const override { return {CUDA, 0}; }
  c10::Stream getStream(c10::Device device) const noexcept override { return c10::Stream(c10::Stream::DEFAULT, device); }
  c10::Stream exchangeStream(c10::Stream stream) const noexcept override { return stream; }
};
static Guard guard;

// Autograd asks torch's hooks whether there is an accelerator. They have no state, and exist when this is loaded.
struct Hooks final : at::CUDAHooksInterface {
  bool hasCUDA() const override { return true; }
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return false; }
};
static Hooks hooks;

// The process may have a guard of its own: that of other tests stands for nothing at all.
static c10::impl::NoOpDeviceGuardImpl<CUDA> nothing;
static const c10::impl::DeviceGuardImplInterface* before[2];

using Loaded = int (*)(unsigned long module, const void* code);
using Launched = void (*)(unsigned long module, unsigned grid, unsigned block, unsigned shared, unsigned long stream, void** arguments);
static Loaded on_load;
static Launched on_launch;
static thread_local int mode;
static unsigned long modules;

extern "C" {
void sim_guard(bool is_own) {
  before[is_own] = c10::impl::device_guard_impl_registry[size_t(CUDA)].exchange(is_own ? &guard : &nothing);
}
void sim_unguard(bool is_own) { c10::impl::registerDeviceGuard(CUDA, before[is_own]); }
void sim_swap_hooks() { std::swap(*(void**)&at::detail::getCUDAHooks(), *(void**)&hooks); }
void sim_listen(Loaded load, Launched launch) { on_load = load; on_launch = launch; }
int sim_mode() { return mode; }

CUresult cuThreadExchangeStreamCaptureMode(CUstreamCaptureMode* m) { int old = mode; mode = *m; *m = (CUstreamCaptureMode)old; return CUDA_SUCCESS; }
CUresult cuStreamIsCapturing(CUstream, CUstreamCaptureStatus* v) { *v = CU_STREAM_CAPTURE_STATUS_NONE; return CUDA_SUCCESS; }
CUresult cuInit(unsigned) { return CUDA_SUCCESS; }
CUresult cuGetErrorString(CUresult e, const char** s) {
  *s = e == 900 ? "operation not permitted when stream is capturing" : "an error of the simulated driver";
  return CUDA_SUCCESS;
}
CUresult cuDriverGetVersion(int* v) { *v = 13000; return CUDA_SUCCESS; }
CUresult cuCtxGetCurrent(CUcontext* c) { *c = (CUcontext)1; return CUDA_SUCCESS; }
CUresult cuCtxSetCurrent(CUcontext) { return CUDA_SUCCESS; }
#undef cuDevicePrimaryCtxRetain
CUresult cuDevicePrimaryCtxRetain(CUcontext* c, CUdevice) { *c = (CUcontext)1; return CUDA_SUCCESS; }
CUresult cuCtxGetDevice(CUdevice* d) { *d = 0; return CUDA_SUCCESS; }
CUresult cuDeviceGet(CUdevice* d, int i) { *d = i; return CUDA_SUCCESS; }
CUresult cuDeviceGetAttribute(int* v, CUdevice_attribute a, CUdevice) {
  *v = a == CU_DEVICE_ATTRIBUTE_WARP_SIZE ? 32
      : a == CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT ? 2
      : a == CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN || a == CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR ? 232448
      : a == CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_BLOCK ? 65536
      : a == CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR ? 9 : 0;
  return CUDA_SUCCESS;
}
CUresult cuModuleLoadData(CUmodule* m, const void* code) {
  *m = (CUmodule)++modules;
  return (CUresult)(on_load ? on_load(modules, code) : 0);
}
CUresult cuModuleUnload(CUmodule) { return CUDA_SUCCESS; }
CUresult cuModuleGetFunction(CUfunction* f, CUmodule m, const char*) { *f = (CUfunction)m; return CUDA_SUCCESS; }
CUresult cuFuncGetAttribute(int* v, CUfunction_attribute a, CUfunction) { *v = a == CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK ? 1024 : 32; return CUDA_SUCCESS; }
CUresult cuFuncSetAttribute(CUfunction, CUfunction_attribute, int) { return CUDA_SUCCESS; }
CUresult cuFuncSetCacheConfig(CUfunction, CUfunc_cache) { return CUDA_SUCCESS; }
CUresult cuCtxGetLimit(size_t* v, CUlimit) { *v = 0; return CUDA_SUCCESS; }
CUresult cuCtxSetLimit(CUlimit, size_t) { return CUDA_SUCCESS; }
CUresult cuOccupancyMaxActiveClusters(int* n, CUfunction, const CUlaunchConfig*) { *n = 1; return CUDA_SUCCESS; }
CUresult cuTensorMapEncodeTiled(CUtensorMap*, CUtensorMapDataType, cuuint32_t, void*, const cuuint64_t*, const cuuint64_t*, const cuuint32_t*, const cuuint32_t*, CUtensorMapInterleave, CUtensorMapSwizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill) { return CUDA_SUCCESS; }
CUresult cuPointerGetAttribute(void* v, CUpointer_attribute, CUdeviceptr p) { *(CUdeviceptr*)v = p; return CUDA_SUCCESS; }
CUresult cuLaunchKernelEx(const CUlaunchConfig* c, CUfunction f, void** arguments, void**) {
  on_launch((unsigned long)f, c->gridDimX, c->blockDimX, c->sharedMemBytes, (unsigned long)c->hStream, arguments);
  return CUDA_SUCCESS;
}
}
