"""d9d's own JobLogger and TrackerWriter log to a backend of this library, and a job that is restored goes on."""

import importlib.util
import inspect
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from d9d_tracker import BaseTracker, BaseTrackerRun, Histogram, IntegerBinning, JsonlTrackerConfig, RunConfig, read
from d9d_tracker.integrations.d9d import D9dLoopTracker, plug_in

REAL = pytest.mark.skipif(
    not importlib.util.find_spec("d9d"), reason="d9d is not installed; it asks for torch 2.14: pip install d9d"
)


@dataclass
class Point:
    name: str
    step: int
    context: dict[str, str] = field(default_factory=dict)


@pytest.mark.parametrize("accumulates", [True, False])
def test_points_arrive_at_their_steps_and_late_ones_too(config, stored, accumulates):
    if not accumulates:
        config = config.model_copy(update={"accumulator": None})
    tracker = D9dLoopTracker(config)
    with tracker.open(RunConfig(name="job", hparams={"lr": 0.1})) as run:
        for step in range(6):
            run.write(Point("loss", step, {"stage": "train"}), SimpleNamespace(value=torch.tensor(float(step))))
            run.write(Point("tokens", step), SimpleNamespace(counts=torch.tensor([0, 2, step])))
            if step > 2:
                run.write(Point("late", step - 2), SimpleNamespace(value=step))
                run.write(Point("late tokens", step - 2), SimpleNamespace(counts=torch.tensor([step])))
        with pytest.raises(ValueError, match="a Scalar or a Histogram"):
            run.write(Point("text", 6), "text")
    stored_run, points = stored()
    assert (stored_run["name"], stored_run["hparams"]) == ("job", {"lr": 0.1})
    assert points["loss", ("stage", "train")] == {step: float(step) for step in range(6)}
    assert points["late",] == {1: 3.0, 2: 4.0, 3: 5.0}
    assert points["late tokens",] == {1: 3, 2: 4, 3: 5}
    assert points["tokens",] == {step: 2 + step for step in range(6)}


@pytest.mark.parametrize("counts", [[0, 2, 0, 5, 0], [3], [0, 0], [1, 4, 2]])
def test_counts_are_the_histogram_of_what_was_counted(config, counts):
    tracker = D9dLoopTracker(config)
    with tracker.open(RunConfig(name="job")) as run:
        run.run.set_context({"stage": "train"})  # is not d9d's
        run.write(Point("experts", 0), SimpleNamespace(counts=torch.tensor(counts)))
        assert run.run.get_context() == {"stage": "train"}
    (series,) = read(config.path)[0].load()
    (stored,) = series.values
    values = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    expected = Histogram.from_values(values, IntegerBinning(bins=len(counts)))
    assert series.context == {}
    assert {name: repr(getattr(stored, name)) for name in expected.__slots__} == {
        name: repr(getattr(expected, name)) for name in expected.__slots__
    }


def test_up_to_version_0_23_its_loop_takes_our_runs_as_they_are():
    # What d9d 0.23 calls, by name and order of the arguments.
    expected = {
        "set_step": ["self", "step"],
        "set_context": ["self", "context"],
        "scalar": ["self", "name", "value", "context"],
        "bins": ["self", "name", "values", "context"],
    }
    for name, arguments in expected.items():
        assert list(inspect.signature(getattr(BaseTrackerRun, name)).parameters) == arguments
    assert list(inspect.signature(BaseTracker.open).parameters) == ["self", "properties"]
    assert {"name", "description", "hparams"} <= set(RunConfig.model_fields)
    assert not any(field.is_required() for name, field in RunConfig.model_fields.items() if name != "name")
    assert {"state_dict", "load_state_dict", "from_config"} <= set(dir(BaseTracker))


def job_logger(schedule, is_main=True) -> Any:
    from d9d.loop.component.job_logger import JobLogger
    from d9d.loop.config.config import JobLoggerConfig
    from d9d.metric.impl.container import ComposeMetric
    from d9d.tracker import RunConfig as D9dRunConfig

    return JobLogger(
        dist_context=SimpleNamespace(is_main_process=is_main),
        config=JobLoggerConfig(period_steps=1000, tracker={"provider": "null"}),
        metrics=ComposeMetric({}),
        schedule=schedule,
        run_config=D9dRunConfig(name="job", hparams={"lr": 0.1}),
        additional_hparams={"seed": 1},
    )


@REAL
def test_its_job_logger_logs_here_and_goes_on(config, stored):
    schedule = SimpleNamespace(current_step=0, should_do_action=lambda *arguments, **keywords: False)
    with plug_in(config):
        first = job_logger(schedule)
    state = None
    with first.new_run({"stage": "train"}) as writer:
        for step in range(9):
            schedule.current_step = step
            first.log(torch.tensor(float(step)), torch.tensor(1.0))
            run: Any = first._pending._run.run
            run.bins("device", torch.full((5,), float(step)))
            if step == 5:
                state = first.state_dict()
    plug_in(config)
    second = job_logger(schedule)
    second.load_state_dict(state)
    with second.new_run({"stage": "train"}) as writer:
        for step in range(6, 11):
            schedule.current_step = step
            second.log(torch.tensor(float(step)), torch.tensor(2.0))
            second._pending._run.run.bins("device", torch.full((5,), float(step)))
    from d9d.tracker import Histogram

    assert writer is not None
    run_line, points = stored()
    assert run_line["hparams"] == {"run": {"lr": 0.1}, "params": {"seed": 1}}
    assert points["loss", ("stage", "train")] == {step: float(step) for step in range(11)}
    assert points["l2_grad_norm_total", ("stage", "train")] == {step: 1.0 + (step > 5) for step in range(11)}
    assert sum(points["device",].values()) == 11 * 5
    tracker = D9dLoopTracker(JsonlTrackerConfig(path=config.path / "counts", accumulator=config.accumulator))
    with tracker.open(RunConfig(name="x")) as run:
        run.write(Point("experts", 1), Histogram(counts=torch.tensor([1, 2])))


@REAL
def test_one_job_is_plugged_in_and_the_next_is_as_ever(config):
    from d9d.loop.component.job_logger import JobLogger
    from d9d.tracker.provider.null import NullTracker

    build = JobLogger._build_tracker
    plug_in(config)
    assert isinstance(job_logger(SimpleNamespace(current_step=0))._tracker, D9dLoopTracker)
    assert isinstance(job_logger(SimpleNamespace(current_step=0))._tracker, NullTracker)
    with plug_in(config):
        assert JobLogger._build_tracker is not build
    assert JobLogger._build_tracker is build


@REAL
def test_other_processes_than_the_main_one_keep_its_null_tracker(config):
    from d9d.tracker.provider.null import NullTracker

    plugged = plug_in(config)
    assert isinstance(job_logger(SimpleNamespace(current_step=0), is_main=False)._tracker, NullTracker)
    plugged.close()  # there is nothing to undo any more
    assert isinstance(job_logger(SimpleNamespace(current_step=0))._tracker, NullTracker)
