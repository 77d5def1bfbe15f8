"""Runs PTX on the CPU: the threads of a block are the lanes of NumPy arrays.

What it is for: to execute what Triton really compiles for an NVIDIA GPU, inline PTX included, where there is none, with
every access to memory checked (see memory.py). Blocks run one after the other, in any order.

How threads diverge: each lane has its own program counter. Of the warps whose turn it is, the lowest counter runs next,
with all lanes that stand there. Between two barriers warps run in a random order: some to the barrier, then others.
"""

import random
import re

import numpy as np
from arithmetic import compute
from memory import Fault, GlobalMemory, Region
from program import TYPES, Instruction, Operand, Program

_LANES_OF_A_WARP = 32
_MOST_INSTRUCTIONS = 1_000_000
_REDUCE = {"add": np.add, "min": np.minimum, "max": np.maximum, "and": np.bitwise_and, "or": np.bitwise_or}


def launch(
    program: Program,
    memory: GlobalMemory,
    arguments: list[int | float],
    threads: int,
    blocks: int,
    rng: random.Random,
) -> int:
    """Run all blocks of a launch in a random order.

    Args:
        program: See `program.read`.
        memory: The arrays that it may touch.
        arguments: In the order of its parameters; addresses are integers. Trailing ones, Triton's own scratch, may be
            left out.
        threads: Of a block.
        blocks: How many there are.
        rng: Decides the order of blocks and warps.

    Returns:
        How many instructions ran, those of several lanes at once counting as one.

    Raises:
        Fault: On whatever a GPU would not do, or not reliably.
    """
    executed = 0
    for block in rng.sample(range(blocks), blocks):
        one = Block(program, memory, arguments, threads, block, blocks, rng)
        with np.errstate(all="ignore"):
            one.run()
        executed += one.executed
    return executed


class Block:
    """One thread block. Registers are unsigned integers of [threads], predicates bool; see `launch` for arguments."""

    def __init__(self, program, memory, arguments, threads, block, blocks, rng):
        self.executed = 0
        self._program: Program = program
        self._memory: GlobalMemory = memory
        self._rng: random.Random = rng
        self._threads: int = threads
        self._arguments = dict(zip(program.parameters, [*arguments, 0, 0, 0, 0], strict=False))
        self._lane = np.arange(threads)
        garbage = np.full(max(program.shared_bytes, 1), 0xA5, np.uint8)
        self._shared = Region("shared memory", 0, garbage, is_written=False, is_writable=True, are_reads_races=True)
        special = {"%tid.x": self._lane, "%ctaid.x": block, "%nctaid.x": blocks, "%ntid.x": threads}
        special |= dict.fromkeys(("%tid.y", "%tid.z", "%ctaid.y", "%ctaid.z"), 0)
        self._registers: dict[str, np.ndarray] = {}
        self._constants: dict[tuple[str, type], np.ndarray] = {
            (name, np.uint32): np.broadcast_to(np.asarray(value, np.uint32), threads) for name, value in special.items()
        }

    def run(self) -> None:
        """Run to the end."""
        code = self._program.code
        counter = np.zeros(self._threads, np.int64)
        while (counter < len(code)).any():
            warps = self._rng.sample(range(self._threads // _LANES_OF_A_WARP), self._threads // _LANES_OF_A_WARP)
            cut = self._rng.randrange(len(warps))
            barriers: set[int] = set()
            for group in (warps[:cut], warps[cut:]):
                self._run_to_barrier(counter, np.isin(self._lane // _LANES_OF_A_WARP, group), barriers)
            if len(barriers) > 1:
                raise Fault(f"threads wait at different barriers, lines {[code[place].line for place in barriers]}")
            for region in (self._shared, *self._memory.regions):
                region.barrier()

    def _run_to_barrier(self, counter: np.ndarray, turn: np.ndarray, barriers: set[int]) -> None:
        code, labels = self._program.code, self._program.labels
        waits = np.zeros(self._threads, np.bool_)
        while True:
            ready = turn & ~waits & (counter < len(code))
            if not ready.any():
                return
            here = int(counter[ready].min())
            mask = ready & (counter == here)
            one = code[here]
            counter[mask] += 1
            self.executed += 1
            if self.executed > _MOST_INSTRUCTIONS:
                raise Fault(f"line {one.line}: the program does not end")
            if one.guard is not None:
                predicate = self._get(one.guard, np.bool_)
                mask = mask & (~predicate if one.is_negated else predicate)
                if not mask.any():
                    continue
            match one.parts[0]:
                case "bra":
                    counter[mask] = labels[str(one.operands[0])]
                case "ret" | "exit":
                    counter[mask] = len(code)
                case "bar" | "barrier":
                    waits |= mask
                    barriers.add(here)
                case _:
                    self._step(one, mask)

    def _step(self, one: Instruction, mask: np.ndarray) -> None:
        parts, operands = one.parts, one.operands
        match parts[0]:
            case "ld" if "param" in parts:
                self._load_parameter(one, mask)
            case "ld" | "st":
                self._move(one, mask)
            case "createpolicy":  # a hint to the cache, which is none of the values' business
                self._put(str(operands[0]), np.zeros(self._threads, np.uint64), mask)
            case "atom" | "red":
                self._add(one, mask)
            case "shfl" | "redux":
                self._exchange(one, mask)
            case "mov" if isinstance(operands[0], list) or isinstance(operands[1], list):
                self._pack(one, mask)
            case "setp" if parts[-1] == "f16x2":
                for half, name in enumerate(str(operands[0]).split("|")):
                    get = lambda index, of, half=half: self._get(operands[index], np.uint32).view(of)[half::2]  # noqa: E731 as short as its name
                    self._put(name, compute([*parts[:-1], "f16"], get, len(operands)), mask)
            case _:
                get = lambda index, of: self._get(operands[index], of)  # noqa: E731 as short as its name
                self._put(str(operands[0]), compute(parts, get, len(operands)), mask)

    def _get(self, operand: Operand, of: type[np.generic]) -> np.ndarray:
        assert isinstance(operand, str)
        if operand in self._registers:
            value = self._registers[operand]
            size = np.dtype(of).itemsize
            # A register of 16 bits is the smallest; bytes lie in its lower half.
            return value if of is np.bool_ else value.astype(f"u{size}", copy=False).view(of)
        if operand.startswith("!"):
            return ~self._get(operand[1:], of)
        if (operand, of) not in self._constants:
            if operand.startswith("%"):
                if (operand, np.uint32) in self._constants:
                    return self._constants[operand, np.uint32].astype(of)
                raise Fault(f"register {operand} is read, which nobody wrote")
            self._constants[operand, of] = np.full(self._threads, self._constant(operand, of))
        return self._constants[operand, of]

    def _constant(self, text: str, of: type[np.generic]) -> np.generic:
        if bits := re.fullmatch(r"0([fFdD])([0-9a-fA-F]+)", text):
            is_float32 = bits[1] in "fF"
            return np.array(int(bits[2], 16), np.uint32 if is_float32 else np.uint64).view(of)[()]
        if text in self._program.shared:
            return np.array(self._program.shared[text]).astype(of)[()]
        if of is np.bool_:
            return np.bool_(int(text))
        size = np.dtype(of).itemsize
        return np.array(int(text.rstrip("U"), 0) % 2 ** (8 * size), f"u{size}").view(of)[()]

    def _put(self, name: str, values: np.ndarray, mask: np.ndarray) -> None:
        if name == "_":
            return
        raw = values if values.dtype == np.bool_ else values.view(f"u{values.dtype.itemsize}")
        raw = raw.astype(np.uint16) if raw.dtype == np.uint8 else raw
        if not mask.all():
            raw = np.where(mask, raw, self._registers.get(name, np.zeros((), raw.dtype)))
        self._registers[name] = np.ascontiguousarray(raw)

    def _pack(self, one: Instruction, mask: np.ndarray) -> None:
        """Several registers into a wide one, or back."""
        to, source = one.operands
        of = TYPES[one.parts[-1]]
        names = to if isinstance(to, list) else source
        bits = np.dtype(of).itemsize * 8 // len(names)
        if isinstance(to, list):
            whole = self._get(source, of)
            for index, name in enumerate(to):
                self._put(name, (whole >> of(index * bits)).astype(f"u{bits // 8}"), mask)
        else:
            pieces = [self._get(name, TYPES[f"u{bits}"]).astype(of) << of(i * bits) for i, name in enumerate(source)]
            self._put(str(to), np.bitwise_or.reduce(pieces), mask)

    def _exchange(self, one: Instruction, mask: np.ndarray) -> None:
        by_warp = mask.reshape(-1, _LANES_OF_A_WARP)
        if (by_warp.any(1) & ~by_warp.all(1)).any():
            raise Fault(f"line {one.line}: {one.parts[0]} with threads that are elsewhere")
        value = self._get(one.operands[1], TYPES[one.parts[-1]])
        if one.parts[0] == "shfl":
            if one.parts[2] != "bfly":
                raise Fault(f"line {one.line}: {'.'.join(one.parts)} is not known to the executor")
            result = value[self._lane ^ int(str(one.operands[2]))]
        else:
            reduced = _REDUCE[one.parts[2]].reduce(value.reshape(-1, _LANES_OF_A_WARP), 1, dtype=value.dtype)
            result = np.repeat(reduced, _LANES_OF_A_WARP)
        self._put(str(one.operands[0]), result, mask)

    def _load_parameter(self, one: Instruction, mask: np.ndarray) -> None:
        value = self._arguments[str(one.operands[1]).strip("[]").split("+")[0]]
        raw = np.array(value, np.float64 if isinstance(value, float) else np.int64).view(np.uint64)
        for name in one.operands[0] if isinstance(one.operands[0], list) else [one.operands[0]]:
            self._put(name, np.full(self._threads, raw.astype(TYPES[one.parts[-1]])), mask)

    def _addresses(self, operand: Operand, mask: np.ndarray, is_shared: bool) -> np.ndarray:
        name, _, offset = str(operand).strip("[] ").partition("+")
        pointer = self._get(name.strip(), np.uint32 if is_shared else np.uint64)
        return pointer[mask].astype(np.int64) + int(offset.strip() or "0", 0)

    def _access(self, one: Instruction, kind: str, place: Operand, size: int, mask: np.ndarray):
        """Yield, region by region, the region, which of the active lanes mean it, and where its bytes are."""
        is_shared = "shared" in one.parts
        addresses = self._addresses(place, mask, is_shared)
        lanes = self._lane[mask]
        if (addresses % size).any():
            raise Fault(f"line {one.line}: misaligned, {size} bytes at {addresses[addresses % size != 0][0]:#x}")
        todo = np.ones(addresses.size, np.bool_)
        while todo.any():
            region = self._shared if is_shared else self._memory.find(int(addresses[todo].max()), one.line)
            mine = todo & (addresses >= region.base)
            yield region, mine, region.access(kind, addresses[mine], size, lanes[mine], one.line)
            todo &= ~mine

    def _move(self, one: Instruction, mask: np.ndarray) -> None:
        """Load or store, of one register or of a vector of them."""
        is_load = one.parts[0] == "ld"
        operands = one.operands[:2]  # a hint to the cache may follow
        data, place = operands if is_load else operands[::-1]
        names = data if isinstance(data, list) else [data]
        of = np.dtype(f"u{np.dtype(TYPES[one.parts[-1]]).itemsize}")
        values = np.zeros((int(mask.sum()), len(names)), of)
        if not is_load:
            for index, name in enumerate(names):
                values[:, index] = self._get(name, of.type)[mask]
        size = of.itemsize * len(names)
        for region, mine, where in self._access(one, "read" if is_load else "write", place, size, mask):
            if is_load:
                values[mine] = region.data[where].view(of)
            else:
                region.data[where] = values[mine].view(np.uint8)
        if is_load:
            for index, name in enumerate(names):
                whole = np.zeros(self._threads, of)
                whole[mask] = values[:, index]
                self._put(name, whole, mask)

    def _add(self, one: Instruction, mask: np.ndarray) -> None:
        """Atomic addition."""
        if "add" not in one.parts:
            raise Fault(f"line {one.line}: {'.'.join(one.parts)} is not known to the executor")
        of = np.dtype(TYPES[one.parts[-1]])
        place, amount = one.operands[-2:]
        amounts = self._get(amount, of.type)[mask]
        before = np.zeros(amounts.size, of)
        for region, mine, where in self._access(one, "add", place, of.itemsize, mask):
            cells = region.data.view(of)
            index = where[:, 0] // of.itemsize
            before[mine] = cells[index]
            np.add.at(cells, index, amounts[mine])
        if one.parts[0] == "atom":
            whole = np.zeros(self._threads, of)
            whole[mask] = before
            self._put(str(one.operands[0]), whole, mask)
