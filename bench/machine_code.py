"""The kernels compiled ahead of time, without a GPU, and what their inner loops cost."""

import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, CompiledKernel

from d9d_tracker_kernels import histogram, launch
from d9d_tracker_kernels.binning import EXPONENTIAL

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
    "gfx1100": GPUTarget("hip", "gfx1100", 32),
}
# Before, tl.histogram took hundreds of instructions an element.
IS_HISTOGRAM_FAST = tuple(map(int, triton.__version__.split(".")[:2])) >= (3, 8)
CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"

_SIGNATURE = {
    "values": None,
    "numel": "i64",
    "tiles": "i64",
    "table": "*i64",
    "tensors": "*i64",
    "counts": "*i64",
    "moments": "*fp64",
    "partials": "*fp64",
    "places": "*i64",
    "step": "*i64",
    "place": "i64",
    "every": "i64",
    "bins": "i32",
    "low": "fp64",
    "closing": "fp64",
    "width": "fp64",
    "inverse_width": "fp64",
}
_COMPILER_OPTIONS = ("num_warps", "enable_fp_fusion", "maxnreg")
# Two programs on each of an H100's 132 multiprocessors, and the ticket's place.
PARTIALS_PLACES = 265


@dataclass(frozen=True)
class InnerLoop:
    """The loop over full tiles, as machine code.

    Attributes:
        instructions: How many instructions a thread executes in one turn, by opcode with its modifiers.
        elements: How many elements it counts in one turn.
        registers: Registers a thread holds.
        stack: Bytes of a thread's registers spilled to memory.
    """

    instructions: Counter[str]
    elements: int
    registers: int
    stack: int

    @property
    def instructions_per_element(self) -> float:
        """The number to keep small: it decides whether memory or arithmetic is the limit."""
        return self.instructions.total() / self.elements

    @property
    def float64_per_element(self) -> float:
        """How many of them compute in float64 or convert from or to it, which most GPUs do 16 to 64 times as slowly."""
        return _count(self.instructions, r"D(ADD|MUL|FMA|SETP|MNMX)|\S*F64") / self.elements


def compile_kernel(
    target: str,
    dtype: torch.dtype,
    *,
    many: bool = False,
    inline_ptx: bool = False,
    kind: int = EXPONENTIAL,
    bins: int = 2048,
) -> CompiledKernel:
    """Compiles `count_one` or `count_many` with the installed Triton.

    Args:
        target: A key of TARGETS.
        dtype: Of the values.
        many: Whether to compile the multi-tensor kernel.
        inline_ptx: Whether to count by inline PTX.
        kind: EXPONENTIAL, LINEAR or INTEGER.
        bins: Number of bins.
    """
    gpu = TARGETS[target]
    kernel = histogram.count_many if many else histogram.count_one
    element = launch.ELEMENT_TYPES[dtype]
    rdna = gpu.backend == "hip" and gpu.warp_size == 32
    settings = launch.variant(dtype, PARTIALS_PLACES, kind, bins, rdna=rdna) | {
        "num_warps": launch.THREADS // gpu.warp_size,
        "INLINE_PTX": inline_ptx,
        "ELEMENT": element,
    }
    names = kernel.arg_names
    constants = {name: settings[name] for name in names if name in settings}
    signature = {name: "constexpr" if name in constants else _SIGNATURE[name] for name in names}
    if not many:
        # Signatures shorten int64 to i64 and uint8 to u8.
        signature["values"] = f"*{str(element).replace('uint', 'u').replace('int', 'i')}"
    source = ASTSource(kernel, signature, {(names.index(name),): value for name, value in constants.items()})
    options = {name: settings[name] for name in _COMPILER_OPTIONS if name in settings}
    return triton.compile(source, target=gpu, options=options)


def inner_loop(kernel: CompiledKernel, dtype: torch.dtype) -> InnerLoop:
    """Finds the loop over full tiles in the machine code of an NVIDIA kernel.

    It is the smallest loop that reads 16 bytes at a time and adds once in shared memory for each element.

    Args:
        kernel: From `compile_kernel`.
        dtype: Of the values.

    Raises:
        ValueError: When there is no such loop.
    """
    elements = launch.elements_per_thread(dtype)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        listing = _cuobjdump("-sass", file.name)
        usage = _cuobjdump("-res-usage", file.name)
    code = [
        (int(address, 16), instruction)
        for address, instruction in re.findall(r"/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+ )?([^;]+);", listing)
    ]
    loops = []
    for address, instruction in code:
        branch = re.match(r"BRA\S*\s.*?0x([0-9a-f]+)", instruction)
        if branch and int(branch[1], 16) < address:
            body = [text for place, text in code if int(branch[1], 16) <= place <= address]
            loops.append(Counter(text.split()[0] for text in body))
    matching = [loop for loop in loops if _count(loop, "ATOMS") == elements and _count(loop, r"LDG\S*\.128") > 0]
    if not matching:
        raise ValueError("no loop reads 16 bytes at a time and adds once in shared memory for each element")
    ((registers, stack),) = re.findall(r"REG:(\d+) STACK:(\d+)", usage)
    return InnerLoop(min(matching, key=Counter.total), elements, int(registers), int(stack))


def _count(loop: Counter[str], pattern: str) -> int:
    return sum(number for opcode, number in loop.items() if re.match(pattern, opcode))


def _cuobjdump(option: str, path: str) -> str:
    done = subprocess.run([CUOBJDUMP, option, path], capture_output=True, text=True, check=True)
    return done.stdout + done.stderr
