// A device called privateuseone, whose memory is the host's: it has no float64, and counts the waits of the host.
//
// What is not here runs by torch's fallback to the CPU, after `listener` was told; it may refuse.
#include <ATen/EmptyTensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/native/CPUFallback.h>
#include <ATen/native/Resize.h>
#include <ATen/NativeFunctions.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <c10/core/impl/alloc_cpu.h>
#include <torch/library.h>

constexpr auto KIND = c10::DeviceType::PrivateUse1;
constexpr int DEVICES = 2;
static thread_local c10::DeviceIndex current;
static std::atomic<long> waits;
using Listener = int (*)(const char* operator_name);
static Listener listener;

static void tell(const std::string& name) {
  TORCH_CHECK_NOT_IMPLEMENTED(!listener || listener(name.c_str()), name, " is not implemented for this device");
}

struct Guard final : c10::impl::DeviceGuardImplInterface {
  c10::DeviceType type() const override { return KIND; }
  c10::Device exchangeDevice(c10::Device device) const override {
    auto before = getDevice();
    current = device.index();
    return before;
  }
  c10::Device getDevice() const override { return {KIND, current}; }
  void setDevice(c10::Device device) const override { current = device.index(); }
  void uncheckedSetDevice(c10::Device device) const noexcept override { current = device.index(); }
  c10::Stream getStream(c10::Device device) const override { return c10::Stream(c10::Stream::DEFAULT, device); }
  c10::Stream exchangeStream(c10::Stream stream) const override { return stream; }
  c10::DeviceIndex deviceCount() const noexcept override { return DEVICES; }
};
C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard);

struct Hooks final : at::PrivateUse1HooksInterface {
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  c10::DeviceIndex deviceCount() const override { return DEVICES; }
  c10::DeviceIndex getCurrentDevice() const override { return current; }
};

struct Memory final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    void* data = c10::alloc_cpu(bytes);
    return {data, data, &c10::free_cpu, c10::Device(KIND, current)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &c10::free_cpu; }
  void copy_data(void* to, const void* from, size_t bytes) const override { default_copy_data(to, from, bytes); }
};
static Memory memory;
REGISTER_ALLOCATOR(KIND, &memory);

static c10::ScalarType checked(std::optional<c10::ScalarType> dtype) {
  auto found = c10::dtype_or_default(dtype);
  TORCH_CHECK_TYPE(found != at::kDouble && found != at::kComplexDouble, "this device has no float64");
  return found;
}

static at::Tensor empty(c10::SymIntArrayRef size, std::optional<c10::ScalarType> dtype, std::optional<c10::Layout>,
                        std::optional<c10::Device> device, std::optional<bool>, std::optional<c10::MemoryFormat> format) {
  c10::OptionalDeviceGuard guard(device);
  return at::detail::empty_generic(C10_AS_INTARRAYREF_SLOW(size), &memory, c10::DispatchKeySet(c10::DispatchKey::PrivateUse1), checked(dtype), format);
}

static at::Tensor empty_strided(c10::SymIntArrayRef size, c10::SymIntArrayRef stride, std::optional<c10::ScalarType> dtype,
                                std::optional<c10::Layout>, std::optional<c10::Device> device, std::optional<bool>) {
  c10::OptionalDeviceGuard guard(device);
  return at::detail::empty_strided_generic(C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(stride), &memory, c10::DispatchKeySet(c10::DispatchKey::PrivateUse1), checked(dtype));
}

// The same memory as a tensor of the CPU.
static at::Tensor on_host(const at::Tensor& tensor) {
  if (tensor.device().is_cpu()) return tensor;
  auto same = at::from_blob(tensor.data_ptr(), tensor.sizes(), tensor.strides(), tensor.options().device(at::kCPU).requires_grad(false));
  same._set_conj(tensor.is_conj());
  return same;
}

static at::Tensor copy_from(const at::Tensor& source, const at::Tensor& to, bool non_blocking) {
  bool to_host = to.device().is_cpu();
  if (to_host || (source.device().is_cpu() && !non_blocking)) ++waits;
  tell("aten::_copy_from");
  at::NoGradGuard no_grad;
  on_host(to).copy_(on_host(source));
  return to;
}

static at::Tensor copy_from_and_resize(const at::Tensor& source, const at::Tensor& to) {
  at::native::resize_(to, source.sizes());
  return copy_from(source, to, false);
}

static at::Scalar local_scalar_dense(const at::Tensor& tensor) {
  ++waits;
  tell("aten::_local_scalar_dense");
  return on_host(tensor).item();
}

static void elsewhere(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  tell(op.schema().operator_name().name + (op.schema().overload_name().empty() ? "" : "." + op.schema().overload_name()));
  long before = waits;
  auto told = std::exchange(listener, nullptr);
  try { at::native::cpu_fallback(op, stack); } catch (...) { listener = told; waits = before; throw; }
  listener = told;
  waits = before;
}

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("empty.memory_format", empty);
  m.impl("empty_strided", empty_strided);
  m.impl("as_strided", at::native::as_strided_tensorimpl);
  m.impl("view", at::native::view);
  m.impl("view_as_real", at::native::view_as_real);
  m.impl("view_as_complex", at::native::view_as_complex);
  m.impl("_reshape_alias", at::native::_reshape_alias);
  m.impl("unfold", at::native::unfold);
  m.impl("set_.source_Storage", static_cast<at::Tensor& (*)(at::Tensor&, at::Storage)>(&at::native::set_));
  m.impl("set_.source_Storage_storage_offset", at::native::set_storage_cpu_);
  m.impl("resize_", at::native::resize_);
  m.impl("_copy_from", copy_from);
  m.impl("_copy_from_and_resize", copy_from_and_resize);
  m.impl("_local_scalar_dense", local_scalar_dense);
}
TORCH_LIBRARY_IMPL(aten, Conjugate, m) { m.impl("_copy_from", torch::CppFunction::makeFallthrough()); }
TORCH_LIBRARY_IMPL(_, AutocastPrivateUse1, m) { m.fallback(torch::CppFunction::makeFallthrough()); }
TORCH_LIBRARY_IMPL(_, PrivateUse1, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&elsewhere>()); }

extern "C" {
void device_install() { at::RegisterPrivateUse1HooksInterface(new Hooks); }
long device_waits() { return waits; }
void device_listen(Listener told) { listener = told; }
}
