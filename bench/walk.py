"""How a value walks through the source: ``python -m bench.walk``, on the CPU, counts files, moves and returns.

A reader follows the calls in the order in which they are made: each into another file than the one before is a move,
and a move into a file that was visited already is a return.
"""

import argparse
import contextlib
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import d9d_tracker
import d9d_tracker_kernels
from d9d_tracker import AccumulatorConfig, RunConfig
from d9d_tracker.accumulator import AccumulatingTracker
from d9d_tracker.testing import RecordingTracker

_ROOTS = tuple(str(Path(package.__file__ or "").parent) for package in (d9d_tracker, d9d_tracker_kernels))
_STEPS = 4


class Walk:
    """The files that were called into, in order.

    Args:
        thread: A part of the name of the thread whose calls count; of all if empty.
    """

    def __init__(self, thread: str = ""):
        self.visited: list[str] = []
        self._thread = thread

    def __call__(self, frame: FrameType, event: str, arg: Any) -> None:
        """Take a profiler's event."""
        file = frame.f_code.co_filename
        if event == "call" and file.startswith(_ROOTS) and self._thread in threading.current_thread().name:
            self.visited.append(file)

    @property
    def moves(self) -> list[str]:
        """The files that were moved to, the first one included."""
        pairs = zip(["", *self.visited], self.visited, strict=False)
        return [now for before, now in pairs if now != before]

    def row(self, name: str) -> tuple[str, str, str, str]:
        """Return its name, and how many files, moves and returns it took."""
        files = len(set(self.moves))
        moves = max(0, len(self.moves) - 1)
        return name, str(files), str(moves), str(moves - max(0, files - 1))


@contextlib.contextmanager
def walking() -> Iterator[Walk]:
    """Note the calls of this thread."""
    walk = Walk()
    sys.setprofile(walk)
    try:
        yield walk
    finally:
        sys.setprofile(None)


def main() -> None:
    """Count and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.walk", description=__doc__)
    parser.add_argument("--files", action="store_true", help="name the files, in order")
    chosen = parser.parse_args()
    tracker = AccumulatingTracker(RecordingTracker(), AccumulatorConfig(sync_every=_STEPS))
    value, walks = torch.tensor(1.0), dict[str, Walk]()

    def walk(name: str, call: Callable[[], object]) -> None:
        with walking() as walks[name]:
            call()

    behind = {name: Walk(name) for name in ("collector", "delivery")}
    threading.setprofile(lambda *event: [one(*event) for one in behind.values()])
    with tracker.open(RunConfig(name="walk")) as run:
        threading.setprofile(None)
        for step in range(_STEPS):  # what happens once
            run.set_step(step)
            run.scalar("loss", value)
            run.bins("values", value)
        run.set_step(_STEPS)
        walk("bins", lambda: run.bins("values", value))
        run.flush()
        for one in behind.values():
            one.visited.clear()
        walk("scalar", lambda: run.scalar("loss", value))
        walk("set_step", lambda: run.set_step(_STEPS + 1))
        for step in range(_STEPS + 2, 2 * _STEPS):
            run.set_step(step)
        walk("set_step that ends a window", lambda: run.set_step(2 * _STEPS))
        tracker.state_dict()  # waits until the window is with the backend
        for name, one in behind.items():
            walks[f"{name}'s thread, for a window"] = Walk()
            walks[f"{name}'s thread, for a window"].visited = one.visited[:]
        whole = Walk()
        whole.visited = [
            file for name, one in walks.items() if name not in ("bins", "set_step") for file in one.visited
        ]
        walks["a scalar, from the call to the backend"] = whole
    table = Table("walk", "files", "moves", "returns")
    for name, one in walks.items():
        table.add_row(*one.row(name))
    console = Console()
    console.print(table)
    if chosen.files:
        for name, one in walks.items():
            console.print(f"{name}: {' '.join(Path(file).name for file in one.moves)}", soft_wrap=True, highlight=False)


if __name__ == "__main__":
    main()
