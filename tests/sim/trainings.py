"""Trainings with every way of logging: on the CPU, and on the simulated GPU as they are, captured, or both in turn."""

import contextlib
import logging
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from d9d_tracker import AccumulatingTracker, AccumulatorConfig, RunConfig
from d9d_tracker.testing import RecordingTracker
from d9d_tracker_kernels.binning import CALLS
from d9d_tracker_kernels.lanes import COUNT

STEPS, SAVED = 30, 13
Points = dict[tuple[str, tuple, int], Any]


@contextlib.contextmanager
def opened(device: str, records: list[Any], **config: Any) -> Iterator[tuple[AccumulatingTracker, Any]]:
    """Open a run on a device; what arrives is added to ``records``."""
    tracker = RecordingTracker()
    small = {"sync_every": 4, "max_scalars": 160, "max_histograms": 96, "summary": False, "flush_timeout": 60.0}
    with tempfile.TemporaryDirectory() as folder:
        settings = AccumulatorConfig(device=device, backlog_dir=folder, distributed="off", **{**small, **config})
        accumulating = AccumulatingTracker(tracker, settings)
        with accumulating.open(RunConfig(name="run")) as run:
            yield accumulating, run
        records.extend(tracker.run.records)


def points(records: list[Any]) -> Points:
    """Return what arrived, by series and step, as numbers."""
    found: Points = {}
    for record in records:
        value = record.value
        if not isinstance(value, float):
            value = (value.count, value.sum, value.sum_squares, value.min, value.max, tuple(value.counts))
        key = (record.name, tuple(sorted(record.context.items())), record.step)
        assert key not in found or found[key] == value or not isinstance(value, float), key
        found[key] = value
    return found


def batch(step: int) -> torch.Tensor:
    return (torch.arange(24.0) * (step + 1) % 7 - 3).reshape(4, 6)


class Noted(nn.Module):
    """A layer that logs what it returns."""

    def __init__(self, run: Any):
        super().__init__()
        self.run, self.layer = run, nn.Linear(5, 3)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        outputs = self.layer(inputs)
        self.run.scalar("inside", outputs.sum(), reduce="sum")
        self.run.bins("inside bins", outputs)
        return outputs


class Training:
    """A model, its optimizer and all ways of logging, on a device.

    Args:
        run: Where it logs.
        device: Where it runs.
    """

    def __init__(self, run: Any, device: str):
        torch.manual_seed(0)
        self.run, self.device = run, device
        self.model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), Noted(run))
        self.model.to(device)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)
        self.inputs = torch.zeros(4, 6, device=device)
        self.rate = torch.zeros((), dtype=torch.float64, device=device)
        self.tokens = torch.tensor([1, 0, 2, 0, 0, 5], device=device)
        self.handles = run.scalar_series("handle", reduce="last"), run.bins_series("bins handle", every=2)

    def feed(self, step: int) -> None:
        """Bring the step's batch and learning rate to the device, without a wait."""
        is_gpu = self.device != "cpu"
        for target, value in ((self.inputs, batch(step)), (self.rate, torch.tensor(0.1 / (step + 1)).double())):
            target.copy_(value.pin_memory() if is_gpu else value, non_blocking=True)

    def step(self) -> None:
        """Train a step, and log in every way that can be captured."""
        run = self.run
        self.optimizer.zero_grad(set_to_none=True)
        outputs = self.model(self.inputs)
        loss = outputs.square().mean()
        loss.backward()
        run.scalar("loss", loss)
        run.scalar("rate", self.rate, {"group": "0"}, reduce="last")
        run.scalar("weighted", outputs.amax(), weight=self.inputs.abs().sum())
        run.scalar("weighted", outputs.amin(), weight=self.rate)
        cells = outputs.view(-1).unbind()
        run.scalars({f"series {index}": cells[index % 12] for index in range(40)}, reduce="max")
        run.bins("outputs", outputs)
        run.bins("every third", self.inputs.t(), every=3)
        run.bins_many({"first": outputs[0], "others": outputs[1:]}, {"part": "head"})
        run.counts("tokens", self.tokens)
        run.counts("strided", self.tokens[::2], every=2)
        self.handles[0].scalar(loss * 2)
        self.handles[1].bins(outputs)
        self.optimizer.step()

    def on_host(self, step: int) -> None:
        """Log what a capture refuses: numbers."""
        self.run.scalar("number", 0.5 * step)
        self.run.scalars({"two": 2.0, "step": step}, reduce="sum")


How = Callable[[Training], Callable[[int], None]]


def train(device: str, how: How, norms: bool = False, **config: Any) -> Points:
    """Train, with contexts that change, a flush and a state; return the points, and what the state held.

    Args:
        device: Where.
        how: Gets the training, and returns what runs a step of it.
        norms: Whether to log norms, too.
        **config: Of the accumulator.
    """
    records: list[Any] = []
    with opened(device, records, **config) as (tracker, run):
        training = Training(run, device)
        step_of = how(training)
        run.watch(training.model, parameters=True, activations=True, norms=norms, updates=norms)
        for step in range(STEPS):
            run.set_step(step)
            _set_context(run, step)
            step_of(step)
            training.on_host(step)
            if step == 3 and device != "cpu":
                torch.cuda.set_sync_debug_mode("error")  # from here on, everything has been met
            if step == 13:
                tracker.state_dict()
                _, state, _ = run.buffers.snapshot(60.0)
            if step == 17:
                run.flush()
    return points(records) | _held(state)


def _held(state: Any) -> Points:
    """Return what a state holds of each series; captured code has given some a slot that nothing was logged to."""
    scalars = {
        (f"{series}", (), -1): repr(state.lanes[:, :, slot].tolist())
        for slot, series in enumerate(state.scalars)
        if state.lanes[:, COUNT, slot].any()
    }
    histograms = {
        (f"{series}", (), -1): (state.counts[row].tolist(), state.moments[row].tolist())
        for row, series in enumerate(state.histograms)
        if state.counts[row, CALLS]
    }
    return scalars | histograms


def _set_context(run: Any, step: int) -> None:
    if step % 5 == 0:
        run.set_context({"stage": "eval" if step % 2 else "train"} if step else {})


def as_it_is(training: Training) -> Callable[[int], None]:
    def step_of(step: int) -> None:
        training.feed(step)
        training.step()

    return step_of


def captured(training: Training) -> Callable[[int], None]:
    """Three eager steps, then one graph for all others; every seventh step eagerly, between replays."""
    graph = torch.cuda.CUDAGraph()
    is_captured = False

    def step_of(step: int) -> None:
        nonlocal is_captured
        training.feed(step)
        if step < 3 or step % 7 == 0:
            training.step()
            return
        if not is_captured:
            with torch.cuda.graph(graph, stream=torch.cuda.Stream(training.device)):
                training.step()
            is_captured = True
        graph.replay()

    return step_of


def on_side_streams(training: Training) -> Callable[[int], None]:
    """Steps on a stream of their own; what is logged from the host, and the end of a step, on the default one."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())

    def step_of(step: int) -> None:
        with torch.cuda.stream(stream):
            training.feed(step)
            training.step()

    return step_of


def graphed(training: Training) -> Callable[[int], None]:
    """The model by torch's own ``make_graphed_callables``, which captures its forward and backward after warming up."""
    sample = torch.zeros(4, 6, device=training.device)
    training.model = torch.cuda.make_graphed_callables(training.model, (sample,))
    return as_it_is(training)


def quiet() -> None:
    logging.getLogger("d9d_tracker").setLevel(logging.CRITICAL)
