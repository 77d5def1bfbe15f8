"""Trackers of d9d behind this package: a stand-in of d9d 0.24's protocol, and d9d itself where it is installed.

d9d 0.24 asks for torch 2.14; beside an older one it installs by ``pip install --no-deps d9d optree`` only.
"""

import importlib.util
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import BaseModel

from d9d_tracker import IntegerBinning, RunConfig, tracker_from_config
from d9d_tracker.accumulator import AccumulatingTracker
from d9d_tracker.config import AccumulatorConfig
from d9d_tracker.provider.d9d_adapter import D9dConfig
from d9d_tracker.record import Histogram

ADAPTER = "d9d_tracker.provider.d9d_adapter.tracker"


def stand_in() -> types.ModuleType:
    """A module with the names and signatures of ``d9d.tracker`` 0.24 that the adapter uses."""

    @dataclass(frozen=True, kw_only=True)
    class TrackerPoint:
        name: str
        step: int
        context: dict[str, str]

    @dataclass(kw_only=True)
    class Scalar:
        value: Any

    @dataclass(kw_only=True)
    class Counts:
        counts: torch.Tensor

    class Config(BaseModel):
        name: str
        description: str | None = None
        hparams: dict[str, Any] = {}

    module: Any = types.ModuleType("d9d.tracker")
    module.TrackerPoint, module.Scalar, module.Histogram, module.RunConfig = TrackerPoint, Scalar, Counts, Config
    module.AnyTrackerConfig = dict[str, str]
    module.tracker_from_config = lambda config: ("made from", config)
    return module


@pytest.fixture(params=["stand-in", *(["d9d"] if importlib.util.find_spec("d9d") else [])])
def d9d(request: pytest.FixtureRequest) -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "d9d":
            import d9d.tracker as module  # pyright: ignore[reportMissingImports] - is not installed everywhere
        else:
            module = stand_in()
            patch.setitem(sys.modules, "d9d", types.ModuleType("d9d"))
            patch.setitem(sys.modules, "d9d.tracker", module)
        sys.modules.pop(ADAPTER, None)
        yield module
        sys.modules.pop(ADAPTER, None)


@dataclass
class Inner:
    """A tracker of d9d that keeps what it is handed."""

    written: list[tuple[Any, Any]] = field(default_factory=list)
    opened: list[Any] = field(default_factory=list)
    ends: list[Any] = field(default_factory=list)
    state: str = "fresh"

    def write(self, point: Any, value: Any) -> None:
        self.written.append((point, value))

    @contextmanager
    def open(self, properties: Any) -> Iterator["Inner"]:
        self.opened.append(properties)
        try:
            yield self
        except BaseException as error:
            self.ends.append(type(error))
            raise
        self.ends.append(None)

    def state_dict(self) -> dict[str, Any]:
        return {"inner": self.state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.state = state["inner"]


def wrap(inner: Inner) -> Any:
    from d9d_tracker.provider.d9d_adapter.tracker import D9dTracker

    return D9dTracker(inner)


def test_values_reach_d9d_in_its_own_types(d9d: Any, tmp_path: Path) -> None:
    inner = Inner()
    config = AccumulatorConfig(device="cpu", sync_every=2, backlog_dir=tmp_path)
    tracker = AccumulatingTracker(wrap(inner), config)
    with tracker.open(RunConfig(name="wrapped", description="text", hparams={"lr": 0.1})) as run:
        run.set_context({"stage": "train"})
        for step in range(2):
            run.set_step(step)
            run.scalar("loss", torch.tensor(step + 0.5))
            run.bins("experts", torch.tensor([2, 3, 3]), binning=IntegerBinning(bins=8))
            run.bins("grad", torch.tensor([-1.5, 0.25]))
    assert type(inner.opened[0]) is d9d.RunConfig
    assert inner.opened[0].model_dump() == {"name": "wrapped", "description": "text", "hparams": {"lr": 0.1}}
    points = {(point.name, point.step): value for point, value in inner.written}
    assert all(type(point) is d9d.TrackerPoint and point.context == {"stage": "train"} for point, _ in inner.written)
    assert {step: points["loss", step].value for step in range(2)} == {0: 0.5, 1: 1.5}
    assert points["experts", 1].counts.tolist() == [0, 0, 2, 4]
    assert points["experts/count", 1] == d9d.Scalar(value=6.0)
    assert ("grad", 1) not in points  # its edges are no integers
    assert points["grad/min", 1].value == -1.5
    assert inner.ends == [None]
    assert tracker.report.refused == {}


def test_a_failing_loop_is_told_to_d9d(d9d: Any) -> None:
    inner = Inner()
    with pytest.raises(KeyError), wrap(inner).open(RunConfig(name="fails")):
        raise KeyError
    assert inner.ends == [KeyError]


def test_the_state_is_that_of_d9d_and_an_identity(d9d: Any) -> None:
    first = wrap(Inner(state="third step"))
    with first.open(RunConfig(name="first")):
        state = first.state_dict()
    second_inner = Inner()
    second = wrap(second_inner)
    with pytest.raises(ValueError, match="'d9d'"):
        second.load_state_dict({"run_id": "a"})
    second.load_state_dict(state)
    assert second_inner.state == "third step"
    with second.open(RunConfig(name="second")):
        assert second.run_id == first.run_id == state["run_id"]


def test_a_histogram_of_other_edges_is_no_counts(d9d: Any) -> None:
    from d9d_tracker.provider.d9d_adapter.tracker import _unit_counts

    assert _unit_counts(Histogram.from_values(torch.tensor([]))) is None
    assert _unit_counts(Histogram.from_values(torch.tensor([-1, 2]), IntegerBinning(bins=4))) is None
    counts = _unit_counts(Histogram.from_values(torch.tensor([1, 3]), IntegerBinning(bins=4)))
    assert counts is not None
    assert counts.tolist() == [0, 1, 0, 1]


def test_the_configuration_names_a_tracker_of_d9d(d9d: Any) -> None:
    tracker: Any = tracker_from_config(D9dConfig(tracker={"provider": "log"}, accumulator=None))
    inner = tracker._tracker
    assert inner == ("made from", {"provider": "log"}) or type(inner) is getattr(
        sys.modules.get("d9d.tracker.provider.log"), "LogTracker", None
    )


@pytest.mark.skipif(
    not importlib.util.find_spec("d9d"), reason="d9d is not installed; it asks for torch 2.14: pip install d9d"
)
def test_d9ds_own_tensorboard_tracker_is_resumed(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def make() -> Any:
        inner = {"provider": "tensorboard", "log_dir": str(tmp_path / "runs")}
        accumulator = AccumulatorConfig(device="cpu", sync_every=2, backlog_dir=tmp_path)
        return tracker_from_config(D9dConfig(tracker=inner, accumulator=accumulator))

    first, state = make(), None
    with first.open(RunConfig(name="first")) as run:
        for step in range(8):
            if step == 4:
                run.set_step(step)
                run.flush()
                state = first.state_dict()
            run.set_step(step)
            run.scalar("loss", step)
    second = make()
    second.load_state_dict(state)
    with second.open(RunConfig(name="first")) as run:
        for step in range(4, 10):
            run.set_step(step)
            run.scalar("loss", step * 10)
    events = EventAccumulator(str(tmp_path / "runs"), size_guidance={"scalars": 0}).Reload()
    found = [(point.step, point.value) for point in events.Scalars("loss")]
    assert found == [(step, step * 10 if step >= 4 else step) for step in range(10)]
