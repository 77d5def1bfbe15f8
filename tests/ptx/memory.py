"""Memory in which every access is checked: bounds, alignment, reads of what nobody wrote, and races between warps."""

import numpy as np

_NOBODY, _SEVERAL = -1, -2
_LANES_OF_A_WARP = 32
# What of other warps an access must not meet without a barrier between.
_CONFLICTS = {"write": ("write", "read", "add"), "read": ("write", "add"), "add": ("write", "read")}


class Fault(Exception):  # noqa: N818 it is the GPU's fault, not an error of the executor
    """What a GPU would answer with an error, or do silently wrong."""


class Region:
    """One array, at an address.

    Args:
        name: For messages.
        base: Its address.
        data: uint8, flat; the array itself, not a copy.
        is_written: Whether it holds values at first.
        is_writable: Whether the program may write to it.
        are_reads_races: Whether a read beside another warp's write is a race. In global memory it is not: Triton lets
            all threads load a scalar, of which one thread uses the value.
    """

    def __init__(
        self, name: str, base: int, data: np.ndarray, *, is_written: bool, is_writable: bool, are_reads_races: bool
    ):
        self.name, self.base, self.data = name, base, data
        self.is_writable = is_writable
        self._written = None if is_written else np.zeros(data.size, np.bool_)
        self._are_reads_races = are_reads_races
        self._touched = {kind: np.full(data.size, _NOBODY, np.int16) for kind in _CONFLICTS} if is_writable else {}

    def barrier(self) -> None:
        """Let go of who touched what."""
        for warps in self._touched.values():
            warps.fill(_NOBODY)

    def access(self, kind: str, addresses: np.ndarray, size: int, lanes: np.ndarray, line: int) -> np.ndarray:
        """Check the accesses of several lanes.

        Args:
            kind: "read", "write" or "add" (an atomic addition).
            addresses: int64 [n].
            size: Bytes of each access.
            lanes: int64 [n], the lane of each.
            line: Of the PTX text, for messages.

        Returns:
            int64 [n, size]: where in `data` the bytes lie.

        Raises:
            Fault: Saying which line does what wrong.
        """
        where = (addresses - self.base)[:, None] + np.arange(size)
        if where.min() < 0 or where.max() >= self.data.size:
            raise Fault(f"line {line}: {kind} at byte {where.max()} of {self.name}, which has {self.data.size}")
        if kind != "read" and not self.is_writable:
            raise Fault(f"line {line}: {kind} in {self.name}, which is an input")
        if self._written is not None:
            if kind != "write" and not self._written[where].all():
                raise Fault(f"line {line}: {kind} of {self.name} where nobody wrote")
            self._written[where] = True
        if self._touched:
            self._touch(kind, where, np.repeat(lanes // _LANES_OF_A_WARP, size).reshape(where.shape), line)
        return where

    def _touch(self, kind: str, where: np.ndarray, warps: np.ndarray, line: int) -> None:
        if kind == "read" and not self._are_reads_races:
            return
        for other in _CONFLICTS[kind]:
            before = self._touched[other][where]
            if ((before != _NOBODY) & (before != warps)).any():
                raise Fault(f"line {line}: a race, {kind} in {self.name} and {other} by another warp without a barrier")
        mine = self._touched[kind]
        before = mine[where]
        mine[where] = warps
        is_several = (mine[where] != warps) | ((before != _NOBODY) & (before != warps))
        if is_several.any():
            if kind == "write":
                raise Fault(f"line {line}: a race, two warps write to one place in {self.name} at once")
            mine[where[is_several]] = _SEVERAL


class GlobalMemory:
    """Arrays at addresses of our choosing, with much room between."""

    def __init__(self):
        self.regions: list[Region] = []
        self._next = 0x7F00_0000_0000

    def place(self, name: str, array: np.ndarray, *, is_writable: bool = False) -> int:
        """Give an array an address, on a boundary of 4,096 bytes.

        Args:
            name: For messages.
            array: Contiguous; the program reads and writes it in place.
            is_writable: Whether the program may write to it.
        """
        data = array.reshape(-1).view(np.uint8)
        region = Region(name, self._next, data, is_written=True, is_writable=is_writable, are_reads_races=False)
        self.regions.append(region)
        self._next += (data.size // 4096 + 2) * 4096
        return region.base

    def find(self, address: int, line: int) -> Region:
        """Return the array that is meant by an address: the last one that begins below it."""
        for region in reversed(self.regions):
            if address >= region.base:
                return region
        raise Fault(f"line {line}: nothing is at {address:#x}")
