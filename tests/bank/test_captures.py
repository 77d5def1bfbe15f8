"""What is logged while a CUDA graph is captured by hand, with kernels and streams that only take notes."""

import contextlib

import pytest
import torch
from torch import nn

from d9d_tracker.bank.places import Places
from d9d_tracker.devices import event_wait
from d9d_tracker_kernels import histogram, launch, ops, ready_counts, scalar_kernels
from d9d_tracker_kernels import scalars as operator
from d9d_tracker_kernels.bank import allocate

POOL = 32


class Streams:
    """CUDA's streams: dealt out in turn from a pool of 32. What is done on the capturing one is captured."""

    def __init__(self):
        self.dealt = 0
        self.current = self.capturing = None
        self.captured = []

    def __call__(self, device=None):
        self.dealt += 1
        return self.dealt % POOL

    @contextlib.contextmanager
    def on(self, stream):
        before, self.current = self.current, stream
        yield
        self.current = before

    @contextlib.contextmanager
    def capture(self):
        self.capturing = self()
        with self.on(self.capturing):
            yield
        self.capturing = None

    def is_capturing(self):
        return self.capturing is not None and self.current == self.capturing


class Event:
    def record(self, stream=None):
        pass

    def synchronize(self):
        pass


class Gpu:
    """The way from the calls to the kernels as a GPU has it, on tensors of the CPU.

    Attributes:
        streams: Its streams.
        launched: The kernels launched, each with its constants, and for several tensors the key of the plan.
    """

    def __init__(self, monkeypatch, run):
        self.streams, self.launched = Streams(), []
        patch = monkeypatch.setattr
        patch(torch.ops.d9d_tracker, "histogram_", ops._histogram_cuda)
        patch(torch.ops.d9d_tracker, "histogram_many_", ops._histogram_many_cuda)
        patch(torch.ops.d9d_tracker, "add_counts_", ops._add_counts_cuda)
        from d9d_tracker.bank import scalars

        patch(scalars, "merge_scalars_", operator._merge_cuda)
        for module, name in (
            (histogram, "count_one"),
            (histogram, "count_many"),
            (ready_counts, "add_counts"),
            (scalar_kernels, "merge_values"),
            (scalar_kernels, "empty_slots"),
        ):
            patch(module, name, self._kernel(name))
        patch(run.buffers, "is_gpu", True)
        patch(run.buffers, "host", None)
        patch(run.buffers.places, "_written", Event())
        patch(torch.cuda, "Stream", self.streams)
        patch(torch.cuda, "stream", self.streams.on)
        patch(torch.cuda, "current_stream", lambda device=None: 0)
        patch(torch.cuda, "is_current_stream_capturing", self.streams.is_capturing)
        patch(launch, "_is_capturing", lambda tensor: self.streams.is_capturing())
        patch(event_wait, "_exchange_capture_mode", lambda: lambda mode: None)
        object.__setattr__(run.buffers.histograms, "partials", torch.zeros(8, 9, 4, dtype=torch.float64))

    def _kernel(self, name):
        gpu = self

        class Kernel:
            def __getitem__(self, grid):
                return lambda *arguments, **constants: gpu.launched.append((name, *sorted(constants.items(), key=str)))

        return Kernel()


@pytest.fixture
def opened(recorded, monkeypatch):
    with recorded(max_scalars=80, max_histograms=8).open() as run:
        yield run, Gpu(monkeypatch, run)


WAYS = {
    "scalar": lambda run: run.scalar("loss", torch.ones(())),
    "weighted": lambda run: run.scalar("loss", torch.ones(()), weight=torch.ones(())),
    "scalars": lambda run: run.scalars({"a": torch.ones(()), "b": torch.ones(1)}, {"part": "head"}, reduce="max"),
    "bins": lambda run: run.bins("values", torch.ones(100)),
    "bins_many": lambda run: run.bins_many({"w": torch.ones(100), "b": torch.ones(10)}),
    "counts": lambda run: run.counts("tokens", torch.tensor([1, 2])),
    "scalar handle": lambda run: run.handle.scalar(torch.ones(())),
    "bins handle": lambda run: run.bins_handle.bins(torch.ones(100)),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_capture_launches_what_eager_code_has_launched(opened, monkeypatch, way):
    """The same kernels, compiled for the same constants, and by the same plans: drivers may load none in a capture."""
    run, gpu = opened
    run.scalar("takes the first slot", torch.ones(()))  # from here on, slots are no places
    run.handle, run.bins_handle = run.scalar_series("handle"), run.bins_series("bins handle")
    monkeypatch.setattr(launch, "_plans", plans := type(launch._plans)())
    run.set_step(1)
    gpu.launched.clear()
    WAYS[way](run)
    eager, gpu.launched[:] = list(gpu.launched), []
    known = list(plans)
    with gpu.streams.capture():
        WAYS[way](run)
    assert gpu.launched == eager != []
    assert list(plans) == known


def test_a_watched_step_is_captured(opened):
    run, gpu = opened
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    run.watch(model)

    def train():
        run.scalar("loss", torch.ones(()))
        model(torch.ones(4, 3)).sum().backward()
        optimizer.step()

    for step in range(3):
        run.set_step(step)
        train()
    gpu.launched.clear()
    with gpu.streams.capture():
        train()
    assert [name for name, *_ in gpu.launched] == ["merge_values", "count_many"]


def test_no_slot_of_a_place_is_written_by_a_capture(opened, monkeypatch):
    """A replay would write it again, and undo a context that was set since. There are more series than streams."""
    run, gpu = opened
    written = []
    fill = Places._fill

    def noted(places, series, slot):
        written.append((series.name, gpu.streams.is_capturing()))
        fill(places, series, slot)

    monkeypatch.setattr(Places, "_fill", noted)
    with gpu.streams.capture():
        for index in range(70):
            run.scalar(f"series {index}", torch.ones(()))
    assert written == [(f"series {index}", False) for index in range(70)]
    assert gpu.streams.dealt <= 3, "one stream for all of them"


def test_a_reset_leaves_no_ticket_that_two_streams_left_wrong():
    state = allocate(2, "cpu")
    object.__setattr__(state, "partials", torch.ones(2, 9, 4, dtype=torch.float64))
    state.reset_(1)
    assert state.partials[:, 0].tolist() == [[0.0] * 4, [1.0] * 4]


class Stream:
    """One that notes whom it waits for."""

    def __init__(self, name, notes):
        self.name, self.notes = name, notes

    def wait_stream(self, other):
        self.notes.append((self.name, other.name))


def test_a_changed_stream_waits_for_the_last_one_that_logged(opened, monkeypatch):
    run, _ = opened
    notes = []
    streams = {name: Stream(name, notes) for name in "abc"}
    calls = [
        ("a", lambda: run.scalar("x", torch.ones(()))),
        ("a", lambda: run.bins("y", torch.ones(3))),
        ("b", lambda: run.bins("y", torch.ones(3))),
        ("c", lambda: run.counts("tokens", torch.tensor([1]))),
        ("a", lambda: run.scalar_series("handle").scalar(torch.ones(()))),
        ("b", lambda: run.set_step(1)),
    ]
    for name, call in calls:
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None, name=name: streams[name])
        call()
    assert notes == [("b", "a"), ("c", "b"), ("a", "c"), ("b", "a")]
