import contextlib
import ctypes
import re
import subprocess
import sys
import types
from pathlib import Path
from unittest import mock

import pytest
import torch
from torch._dynamo.utils import counters

from d9d_tracker.devices import devices

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()
    counters.clear()
    torch.manual_seed(0)
    yield
    torch._dynamo.reset()


@pytest.fixture
def graphs():
    """Tell how many graphs were compiled so far in this test."""
    return lambda: counters["stats"]["unique_graphs"]


@pytest.fixture
def logged():
    """Turn the records of a run into something to compare: value, or counts of a histogram, by series and step."""

    def make(run) -> dict:
        return {
            (record.name, tuple(sorted(record.context.items())), record.step): (
                record.value
                if isinstance(record.value, float)
                else (record.value.count, record.value.sum, record.value.min, record.value.max)
            )
            for record in run.records
        }

    return make


_GUARD = """
#include <c10/core/impl/DeviceGuardImplInterface.h>
static c10::impl::NoOpDeviceGuardImpl<c10::DeviceType::CUDA> guard;
extern "C" void install() {
  if (!c10::impl::hasDeviceGuardImpl(c10::DeviceType::CUDA))
    c10::impl::registerDeviceGuard(c10::DeviceType::CUDA, &guard);
}
"""
_H100 = types.SimpleNamespace(
    name="NVIDIA H100",
    multi_processor_count=132,
    major=9,
    minor=0,
    regs_per_multiprocessor=65536,
    max_threads_per_multi_processor=2048,
    max_threads_per_block=1024,
    warp_size=32,
    total_memory=80 << 30,
    L2_cache_size=50 << 20,
    shared_memory_per_block_optin=232448,
    gcnArchName="",
)


class _EmittedError(Exception):
    """Inductor has emitted its source; there is no GPU to go on with."""


class FakeCuda:
    """Traces code for a GPU that is not there, with fake tensors."""

    def __init__(self):
        import torch._inductor.codegen.triton
        import torch._inductor.compile_fx
        import torch._inductor.scheduler
        from torch._dynamo import device_interface
        from torch.utils import _triton

        cuda = device_interface.CudaInterface
        constant = lambda value: lambda *_, **__: value  # noqa: E731 as short as what it stands for
        self._patches = [
            mock.patch.object(torch.cuda, "Stream", constant(None)),
            mock.patch.object(torch.cuda, "Event", mock.Mock()),
            mock.patch.object(torch.cuda, "is_current_stream_capturing", constant(False)),
            mock.patch.object(torch.cuda, "get_device_properties", constant(_H100)),
            mock.patch.object(torch.cuda, "get_device_capability", constant((9, 0))),
            mock.patch.object(torch.cuda, "current_device", constant(0)),
            mock.patch.object(torch.cuda, "device_count", constant(1)),
            mock.patch.object(devices, "_found", constant((1, 0))),
            mock.patch.object(cuda, "get_device_properties", staticmethod(constant(_H100))),
            mock.patch.object(cuda.Worker, "get_device_properties", staticmethod(constant(_H100))),
            mock.patch.object(cuda, "get_compute_capability", staticmethod(constant(90))),
            mock.patch.object(cuda, "is_available", staticmethod(constant(True))),
            mock.patch.object(cuda, "current_device", staticmethod(constant(0))),
            mock.patch.object(cuda, "raise_if_triton_unavailable", staticmethod(constant(None))),
            # Modules that were imported before hold the function under their own name.
            *[
                mock.patch.object(module, "has_triton", constant(True))
                for name, module in list(sys.modules.items())
                if name.startswith("torch.") and "has_triton" in vars(module)
            ],
            mock.patch.object(_triton, "triton_hash_with_backend", constant("fake")),
        ]

    @contextlib.contextmanager
    def _device(self):
        from torch._subclasses.fake_tensor import FakeTensorMode

        torch._dynamo.reset()
        with contextlib.ExitStack() as stack:
            for patch in self._patches:
                stack.enter_context(patch)
            stack.enter_context(FakeTensorMode())
            yield

    def nodes(self, function, make_arguments):
        """Return the nodes of the graphs, below autograd, that compiling a call gives."""
        from functorch.compile import make_boxed_func
        from torch._dynamo.backends.common import aot_autograd

        graphs = []

        def keep(module, inputs):
            graphs.append(module)
            return make_boxed_func(module.forward)

        backend = aot_autograd(fw_compiler=keep, keep_inference_input_mutations=True)
        with self._device(), torch.no_grad():
            torch.compile(function, fullgraph=True, backend=backend)(*make_arguments())
        assert len(graphs) == 1
        return list(graphs[0].graph.nodes)

    def module(self, function, make_arguments) -> str:
        """Return the module that Inductor emits."""
        from torch._inductor.graph import GraphLowering

        emitted = []

        def stop(lowering):
            emitted.append(lowering.codegen()[0].value)
            raise _EmittedError

        with self._device(), torch.no_grad(), mock.patch.object(GraphLowering, "compile_to_module", stop):
            arguments = make_arguments()
            # Constants would be folded on the GPU.
            options = {"fx_graph_cache": False, "joint_graph_constant_folding": False}
            try:
                torch.compile(function, fullgraph=True, options=options)(*arguments)
            except Exception:
                if not emitted:
                    raise
        assert len(emitted) == 1
        return emitted[0]

    def source(self, function, make_arguments) -> str:
        """Return the call function that Inductor emits: one line per launch."""
        emitted = self.module(function, make_arguments)
        return emitted[emitted.index("def call(") :]

    def launches(self, function, make_arguments) -> int:
        """Return how many kernels a call launches, each call of an operator counting as one."""
        launch = r"^\s+(?:triton_\w+\.run|torch\.ops\.[\w.]+|extern_kernels\.\w+)\("
        return len(re.findall(launch, self.source(function, make_arguments), re.MULTILINE))


@pytest.fixture(scope="session")
def fake_cuda(tmp_path_factory):
    """A GPU to trace for. A build of torch without CUDA refuses CUDA tensors, even fake ones, for want of a guard."""
    if torch.version.cuda is None:
        folder = tmp_path_factory.mktemp("guard")
        source, library = folder / "guard.cpp", folder / "guard.so"
        source.write_text(_GUARD)
        home = Path(torch.__file__).parent
        flags = ["-std=c++20", "-shared", "-fPIC", f"-I{home}/include", f"-L{home}/lib", "-lc10"]
        subprocess.run(["g++", str(source), "-o", str(library), *flags], check=True)
        ctypes.CDLL(str(library)).install()
    return FakeCuda()
