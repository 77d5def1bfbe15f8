"""PTX text read into instructions. The language: NVIDIA, "Parallel Thread Execution ISA"."""

import re
from dataclasses import dataclass, field

import numpy as np
from memory import Fault

TYPES: dict[str, type[np.generic]] = {
    "pred": np.bool_,
    "f16": np.float16,
    "f32": np.float32,
    "f64": np.float64,
    "b8": np.uint8,
    "b16": np.uint16,
    "b32": np.uint32,
    "b64": np.uint64,
    "u8": np.uint8,
    "u16": np.uint16,
    "u32": np.uint32,
    "u64": np.uint64,
    "s8": np.int8,
    "s16": np.int16,
    "s32": np.int32,
    "s64": np.int64,
}
Operand = str | list[str]


@dataclass(frozen=True)
class Instruction:
    """One instruction.

    Attributes:
        parts: The opcode at its dots: `["add", "rn", "f32"]`.
        operands: A braced list of registers is a list.
        guard: The predicate register it hangs on, if any.
        is_negated: Whether it runs where the predicate is false.
        line: Of the PTX text.
    """

    parts: list[str]
    operands: list[Operand]
    guard: str | None
    is_negated: bool
    line: int


@dataclass
class Program:
    """One kernel.

    Attributes:
        parameters: Names, in order.
        code: Its instructions.
        labels: Where in the code each label stands.
        shared: Addresses of the arrays in shared memory.
        shared_bytes: How much of it there is.
    """

    parameters: list[str]
    code: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)
    shared: dict[str, int] = field(default_factory=dict)
    shared_bytes: int = 0


def read(text: str, dynamic_shared: int) -> Program:
    """Read the one kernel of a PTX text.

    Args:
        text: As Triton leaves it in `asm["ptx"]`.
        dynamic_shared: Bytes of shared memory that the launch adds: Triton's `metadata.shared`.
    """
    head = re.search(r"\.entry\s+\w+\s*\((.*?)\)", text, re.S)
    assert head, "no kernel"
    program = Program(re.findall(r"(\w+_param_\d+)", head[1]))
    program.shared["global_smem"] = 0
    program.shared_bytes = -(-dynamic_shared // 128) * 128
    start = text.index("{", head.end()) + 1
    first_line = text[:start].count("\n")
    for number, line in enumerate(text[start : text.rindex("}")].splitlines(), first_line + 1):
        stripped = line.split("//")[0].strip()
        if label := re.fullmatch(r"(\$?\w[\w$]*|\$[\w$]+):", stripped):
            program.labels[label[1]] = len(program.code)
            continue
        if stripped.startswith("{") and ".reg" in stripped:
            stripped = _with_own_names(stripped, number)
        for statement in stripped.split(";"):
            _read_statement(program, statement.strip(), number)
    return program


def _with_own_names(block: str, number: int) -> str:
    """Give the registers of a block of inline assembly names that no other block has."""
    for name in re.findall(r"\.reg\s+\.\w+\s+(\w+)\s*;", block):
        block = re.sub(rf"(?<![%\w.]){name}\b", f"%local{number}_{name}", block)
    return block[1 : block.rindex("}")]


def _read_statement(program: Program, statement: str, line: int) -> None:
    if statement in ("", "{", "}") or statement.startswith((".reg", ".loc", ".file", ".pragma", ".section")):
        return
    if array := re.match(r"\.shared\s+\.align\s+\d+\s+\.(\w+)\s+(\w+)\[(\d+)\]", statement):
        if array[2] in program.shared:
            raise Fault(f"line {line}: {array[2]} is declared twice")
        program.shared[array[2]] = program.shared_bytes
        program.shared_bytes += np.dtype(TYPES[array[1]]).itemsize * int(array[3])
        return
    guard = re.match(r"@(!?)(%\w+)\s+", statement)
    opcode, _, rest = statement[guard.end() if guard else 0 :].replace("\t", " ").partition(" ")
    parts = opcode.replace("::cta", "").split(".")
    program.code.append(Instruction(parts, _operands(rest), guard and guard[2], bool(guard and guard[1]), line))


def _operands(text: str) -> list[Operand]:
    words = re.findall(r"\{[^}]*\}|\[[^\]]*\]|[^,\s]+", text)
    return [[name.strip() for name in word[1:-1].split(",")] if word.startswith("{") else word for word in words]
