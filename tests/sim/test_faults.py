"""Faults planted in the product: some order of streams shows each, so that the trainings of test_trainings are no show.

Most stand between an operator and its kernel, or between a stream and another, where no test on a CPU looks.
"""

import contextlib
from unittest import mock

import pytest
import torch
from sim.machine import Event, Stream
from sim.simulation import simulated
from sim.test_trainings import expected
from sim.trainings import as_it_is, captured, on_side_streams, train

from d9d_tracker.bank import buffers, places, scalars
from d9d_tracker.bank import staging as window
from d9d_tracker.bank.buffers import Buffers
from d9d_tracker.bank.places import Places
from d9d_tracker_kernels import launch, ready_counts, scalar_kernels
from d9d_tracker_kernels.device import gpu

SCHEDULES = range(10, 50)  # 10 is the first that shows that the packing does not wait for the copy before


class ForgetsTheCopyBefore(window.Staging):
    def copy(self, *arguments):
        self._ready = None
        return super().copy(*arguments)


@contextlib.contextmanager
def never_relaxed():
    yield False


def swapped(function, one, other):
    """A function whose arguments at two places are swapped."""

    def call(*arguments):
        changed = list(arguments)
        changed[one], changed[other] = changed[other], changed[one]
        return function(*changed)

    return call


def on_a_fresh_stream(self):
    return gpu.Stream(self.table.device)


def from_pageable_memory(self):
    slots = [self._told[series] for series in self._series]
    self.table[list(self._series.values())].copy_(torch.tensor(slots), non_blocking=True)


def mixed(rows):
    return [*rows[:1], *rows[3:4], *rows[2:3], *rows[1:2], *rows[4:]]


def files_to_the_first_row(self, row, slots):
    self.window[0, :, :slots].copy_(self.current[:, :slots])


fill, merge, locate = launch._fill, scalar_kernels.merge, launch._locate
known: dict = {}


def by_places(group, dtype, partials):
    """Find plans by the places, too, as it was: a dictionary of plans for each."""
    plans = launch._plans
    places_of = (id(plans), *(place for _, place in group))
    with mock.patch.object(launch, "_plans", known.setdefault(places_of, type(plans)())):
        return locate(group, dtype, partials)


def compiled_for_itself(*arguments):
    """Eager code with a variant of its own, which captured code has not."""
    sizes = scalar_kernels.SIZES if gpu.is_current_stream_capturing() else scalar_kernels.SIZES[-1:]
    with mock.patch.object(scalar_kernels, "SIZES", sizes):
        merge(*arguments)


def pageable(self):
    buffer = torch.empty(self._numbers, dtype=torch.float64, device="cpu")
    self._events[id(buffer)] = gpu.Event()
    self._buffers += 1
    return buffer


PLANTED = {
    "the copy does not wait for the packing": (as_it_is, Stream, "wait_stream", lambda self, other: None),
    "the packing does not wait for the copy before": (as_it_is, buffers, "Staging", ForgetsTheCopyBefore),
    "the collector does not wait": (as_it_is, window, "wait_for", lambda event: None),
    "the bank's changes do not follow each other": (on_side_streams, Buffers, "follow", lambda self: None),
    "the slot of a place is written by the capture": (captured, Places, "_write_one", Places._fill),
    "a fresh stream for each place": (captured, Places, "_stream_apart", on_a_fresh_stream),
    "the slot of a place is not waited for": (captured, places, "relaxed", never_relaxed),
    "the table of places comes from pageable memory": (captured, Places, "_write_all", from_pageable_memory),
    "eager scalars have a variant of their own": (captured, scalar_kernels, "merge", compiled_for_itself),
    "plans are known by their places": (captured, launch, "_locate", by_places),
    "place and cadence swapped": (as_it_is, launch, "launch", swapped(launch.launch, 2, 3)),
    "place and cadence of counts swapped": (as_it_is, ready_counts, "launch", swapped(ready_counts.launch, 2, 3)),
    "places of several tensors swapped": (as_it_is, launch, "_fill", lambda table, rows: fill(table, mixed(rows))),
    "a weight is ignored": (as_it_is, scalar_kernels, "merge", lambda *arguments: merge(*arguments[:-1], 1.0)),
    "strided counts as they lie": (as_it_is, torch.Tensor, "contiguous", lambda self: self),
    "all steps are filed in the first row": (as_it_is, scalars.ScalarBank, "file", files_to_the_first_row),
    "the state is read before it has come": (as_it_is, Event, "query", lambda self: True),
    "the host's buffers are not pinned": (as_it_is, window.Staging, "_allocate", pageable),
    "a launch without its device": (as_it_is, gpu, "device_of", lambda tensor: contextlib.nullcontext()),
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_fault_is_seen(name):
    """By wrong points, or by an error that the simulated GPU raises."""
    how, target, attribute, fault = PLANTED[name]
    right = expected()
    for seed in SCHEDULES:
        try:
            with simulated(seed), mock.patch.object(target, attribute, fault):
                found = train("cuda:1" if "its device" in name else "cuda", how)
        except (RuntimeError, AssertionError, IndexError, ZeroDivisionError) as error:
            print(f"{name}: schedule {seed}: {error!r}")
            return
        if found != right:
            wrong = [key for key in {**right, **found} if right.get(key) != found.get(key)]
            print(f"{name}: schedule {seed}: {len(wrong)} of {len(right)} points differ, {wrong[0]} for one")
            return
    pytest.fail(f"{len(SCHEDULES)} schedules were right")
