"""What can go wrong in a training's life: faults of the world, and faults planted into the code."""

import errno
import itertools
import os
import threading
from collections.abc import Callable
from typing import Any

from d9d_tracker.delivery.outbound import Queued
from d9d_tracker.delivery.owned_sink import OwnedSink
from d9d_tracker.points import Points
from d9d_tracker.provider.jsonl import JsonlRun

try:
    from d9d_tracker.provider.aim.tracker import AimRun
except ImportError:  # it has no wheel for this Python
    AimRun: Any = type("AimRun", (), {"_track": None})


class PageCache:
    """A page cache that dies with the process: what was not synced is lost, as in a power cut.

    A killed process loses nothing it has written, because the system's page cache lives on: SIGKILL alone cannot tell
    a synced write from one that is not. Here, writes to a run's file stay in memory until ``fsync``; closing the file
    and a regular end write them too, as the system would in time.
    """

    def __init__(self) -> None:
        self._pwrite, self._fsync, self._ftruncate, self._close = os.pwrite, os.fsync, os.ftruncate, os.close
        self._due: dict[int, list[Callable[[], Any]]] = {}
        os.pwrite, os.fsync, os.ftruncate, os.close = self.pwrite, self.fsync, self.ftruncate, self.close

    def pwrite(self, file: int, data: Any, position: int) -> int:
        if not _is_run(file):
            return self._pwrite(file, data, position)
        copy = bytes(data)
        self._due.setdefault(file, []).append(lambda: self._pwrite(file, copy, position))
        return len(copy)

    def ftruncate(self, file: int, size: int) -> None:
        if not _is_run(file):
            return self._ftruncate(file, size)
        self._due.setdefault(file, []).append(lambda: self._ftruncate(file, size))

    def fsync(self, file: int) -> None:
        self._write(file)
        self._fsync(file)

    def close(self, file: int) -> None:
        self._write(file)
        self._close(file)

    def _write(self, file: int) -> None:
        for write in self._due.pop(file, []):
            write()


def _is_run(file: int) -> bool:
    return os.readlink(f"/proc/self/fd/{file}").endswith(".jsonl")


def outage() -> None:
    """The world: every now and then, the backend fails for a while."""
    calls = itertools.count()
    fsync, track = os.fsync, AimRun._track

    def fail_at_times() -> None:
        if next(calls) % 20 > 16:
            raise OSError(errno.ENOSPC, "No space left on device")

    def failing_fsync(file: int) -> None:
        if _is_run(file):
            fail_at_times()
        fsync(file)

    def failing_track(self: AimRun, *arguments: Any) -> None:
        fail_at_times()
        track(self, *arguments)

    os.fsync, AimRun._track = failing_fsync, failing_track


def fsync_skipped() -> None:
    """Planted: nothing is ever synced."""
    os.fsync = lambda file: None


def tail_not_cut() -> None:
    """Planted: what an earlier life wrote after the checkpoint stays."""
    JsonlRun.rewind = AimRun.rewind = lambda self, step: None


def marked_too_early() -> None:
    """Planted: the first window counts as delivered before the backend makes it durable, which then takes for ever."""
    deliver = OwnedSink.deliver

    def early(self: OwnedSink, sink: Any, window: Queued, points: Points) -> None:
        is_first = window.contents.first == 0
        if is_first:
            sink.flush = lambda: None
        deliver(self, sink, window, points)
        if is_first:
            sink.flush = threading.Event().wait

    OwnedSink.deliver = early


def plant(names: list[str]) -> None:
    """Begin a life with these faults, the names of functions of this module, and a page cache that dies with it."""
    PageCache()
    for name in names:
        globals()[name]()
