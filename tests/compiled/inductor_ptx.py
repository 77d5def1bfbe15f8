"""What Inductor emits for a GPU, compiled by Triton for sm_90, and executed on the CPU by the executor of tests/ptx."""

import importlib.util
import random
import re
import sys
import types
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

sys.path.insert(0, str(Path(__file__).parents[1] / "ptx"))

import program
from executor import launch
from memory import GlobalMemory

_TARGET = GPUTarget("cuda", 90, 32)
_LARGEST_BLOCK = 128
# What the emitted module asks of a GPU, and what it gets here.
_INSTEAD = (
    (r"from torch\._C import _cuda_getCurrentRawStream as get_raw_stream", "get_raw_stream = lambda device: 0"),
    (r"with torch\.cuda\._DeviceGuard\(\d+\):", "if True:"),
    (r"torch\.cuda\.set_device\(\d+\)", "pass"),
    (r"(?<!^)empty_strided_cuda\(", "empty_strided_cpu("),
    (r"async_compile = AsyncCompile\(\)", "async_compile = executed"),
)


class Kernel:
    """A kernel of Inductor's; ``run`` executes its PTX.

    Args:
        file: The Python file with its source.
        name: Its name.
    """

    def __init__(self, file: Path, name: str):
        spec = importlib.util.spec_from_file_location(file.stem, file)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        function, options = vars(module)[name]
        meta = options["triton_meta"]
        assert options["inductor_meta"]["grid_type"] == "Grid1D"
        self.names = [key for key in meta["signature"] if key != "XBLOCK"]
        self.constants = {key for key, kind in meta["signature"].items() if kind == "constexpr"}
        self.mutated = {key for key in self.names if key.startswith("out")} | set(
            options["inductor_meta"]["mutated_arg_names"]
        )
        (attributes,) = meta["configs"]
        self.block = min(
            _LARGEST_BLOCK, options["size_hints"]["x"]
        )  # Inductor masks nothing where there is one element
        self.warps = max(1, self.block // 32)
        source = ASTSource(function, meta["signature"], {**meta["constants"], "XBLOCK": self.block}, attributes)
        fusion = {"num_warps": self.warps, "enable_fp_fusion": meta["enable_fp_fusion"]}
        compiled = triton.compile(source, target=_TARGET, options=fusion)
        self.program = program.read(compiled.asm["ptx"], compiled.metadata.shared)

    def run(self, *arguments, stream):
        """Execute it on tensors of the CPU, in their memory; the last argument is the number of elements."""
        memory, places = GlobalMemory(), {}
        named = dict(zip(self.names, arguments, strict=True))
        written = {id(value) for key, value in named.items() if key in self.mutated}
        for key, value in named.items():
            if isinstance(value, torch.Tensor) and id(value) not in places:
                places[id(value)] = memory.place(key, value.numpy(), is_writable=id(value) in written)
        blocks = -(-arguments[-1] // self.block)
        launch(
            self.program,
            memory,
            [places.get(id(value), value) for key, value in named.items() if key not in self.constants],
            32 * self.warps,
            blocks,
            random.Random(0),
        )


class Executed:
    """Stands for Inductor's ``AsyncCompile``.

    Args:
        folder: Where the kernels' sources go.

    Attributes:
        kernels: Those that were asked for.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.kernels: list[Kernel] = []

    def triton(self, name: str, source: str, **options) -> Kernel:
        """Compile a kernel for the GPU."""
        source = source.replace("triton_helpers.set_driver_to_gpu()", "")
        source = re.sub(r"import triton_helpers, triton_heuristics", "import triton_helpers", source)
        keep = "class triton_heuristics:\n    pointwise = staticmethod(lambda **options: lambda one: (one, options))\n"
        file = self.folder / f"{name[:40]}_{len(self.kernels)}.py"
        file.write_text(source.replace("@triton_heuristics", f"{keep}\n@triton_heuristics", 1))
        self.kernels.append(Kernel(file, name))
        return self.kernels[-1]

    def wait(self, scope) -> None:
        """Do nothing: all is compiled."""


def execute(source: str, arguments: list[torch.Tensor], folder: Path) -> Executed:
    """Run what Inductor emitted, on tensors of the CPU.

    Args:
        source: The emitted module.
        arguments: In the order of its call.
        folder: For the kernels' sources.

    Returns:
        The kernels that ran.
    """
    for pattern, instead in _INSTEAD:
        source = re.sub(pattern, instead, source, flags=re.MULTILINE)
    executed = Executed(folder)
    module = types.ModuleType("emitted")
    vars(module)["executed"] = executed
    exec(source.replace("empty_strided_cpu = torch._C._dynamo.guards._empty_strided_cuda", ""), vars(module))
    vars(module)["call"](arguments)
    return executed
