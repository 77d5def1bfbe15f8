"""What has left the device and is not with the backends: windows on their way to rank 0, rows that it holds back."""

import base64
import functools
import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from d9d_tracker.series.series import HistogramSeries, ScalarSeries

from .host_window import HostWindow
from .plain import Plain
from .spread import expand, merge_expanded

SERIES = Plain(tuple[list[int], list[float], list[ScalarSeries], list[HistogramSeries]])


@dataclass(frozen=True)
class Logged:
    """A window as a rank has logged it, not expanded, with the number of windows that it had before."""

    rank: int
    index: int
    window: HostWindow


@dataclass
class InTransit:
    """What is on its way.

    Attributes:
        windows: Windows that rank 0 may not have. A rank above 0 lists its last ones though they have been taken: rank
            0 may have saved its state before.
        held: Expanded rows and histograms: on rank 0, of steps to which some rank may still log; of an earlier life.
        taken: On rank 0, how many windows of each rank are merged; the others are still to come.
        unwritten: On rank 0, the first step that is not finished with the backends: what comes for one before is too
            late, and would take the place of other ranks' values.
        let_go: On a rank above 0, the index of the last window that it lists no more; -1 if that is none.
    """

    windows: list[Logged] = field(default_factory=list)
    held: HostWindow | None = None
    taken: dict[int, int] = field(default_factory=dict)
    unwritten: int = 0
    let_go: int = -1

    @property
    def first(self) -> float:
        """On rank 0, the first step of which something is to come; infinity if there is none."""
        windows = [one.window for one in self._missing(self.taken)]
        parts = windows if self.held is None else [*windows, self.held]
        return min((step for part in parts for step in part.steps), default=float("inf"))

    def merged(self, taken: Mapping[int, int]) -> HostWindow | None:
        """Return, expanded and as one, what rank 0 has not taken, as it has saved that; None if there is nothing."""
        parts = [expand(one.window, one.rank) for one in self._missing(taken)]
        parts += [] if self.held is None else [self.held]
        return functools.reduce(merge_expanded, parts) if parts else None

    def _missing(self, taken: Mapping[int, int]) -> list[Logged]:
        return [one for one in self.windows if one.index >= taken.get(one.rank, 0)]

    def lacks_windows_of(self, rank: int) -> bool:
        """Return whether a rank listed windows no more that rank 0 had not taken, when that saved its state."""
        return self.let_go >= self.taken.get(rank, 0)

    def dump(self) -> str:
        """Return it as text; empty if there is nothing."""
        if self == InTransit():
            return ""
        windows = [[one.rank, one.index, to_text(one.window)] for one in self.windows]
        held = None if self.held is None else to_text(self.held)
        taken = list(self.taken.items())
        numbers = {"unwritten": self.unwritten, "let_go": self.let_go}
        return json.dumps({"windows": windows, "held": held, "taken": taken, **numbers})

    @classmethod
    def load(cls, text: str) -> "InTransit":
        """Return what ``dump`` was called on."""
        if not text:
            return cls()
        found = json.loads(text)
        windows = [Logged(rank, index, from_text(one)) for rank, index, one in found["windows"]]
        held = None if found["held"] is None else from_text(found["held"])
        return cls(windows, held, dict(found["taken"]), found["unwritten"], found.get("let_go", -1))


def pack(window: HostWindow) -> bytes:
    """Return a window as bytes."""
    table = SERIES.dump((window.steps, window.times, window.scalars, window.histograms))
    return len(table).to_bytes(8, "little") + table + window.pack()


def unpack(data: bytes) -> HostWindow:
    """Return the window that ``pack`` was given, but for its index."""
    table = 8 + int.from_bytes(data[:8], "little")
    return HostWindow.of(np.frombuffer(data[table:], dtype=np.float64), 0, *SERIES.load(data[8:table]))


def to_text(window: HostWindow) -> str:
    """Return a window as text, see ``pack``."""
    return base64.b64encode(zlib.compress(pack(window), 1)).decode()


def from_text(text: str) -> HostWindow:
    """Return the window that ``to_text`` was given, but for its index."""
    return unpack(zlib.decompress(base64.b64decode(text, validate=True)))
