"""A run ends once, in time and with everything delivered, whoever owns its lifetime."""

import itertools

import pytest
import torch

from d9d_tracker import (
    AccumulatorConfig,
    NullTrackerConfig,
    RunConfig,
    TrackerTypeError,
    TrackerValueError,
    tracker_from_config,
)
from tests.run_files import read_run

from . import scripts

SCRIPT = """
import sys
from contextlib import ExitStack
from pathlib import Path
from d9d_tracker import *
accumulator = AccumulatorConfig(sync_every=2, device="cpu", backlog_dir=Path(sys.argv[1], "backlog"), flush_timeout=20)
tracker = tracker_from_config(JsonlTrackerConfig(path=Path(sys.argv[1]), accumulator=accumulator))
{opening}
for step in range(5):
    run.set_step(step)
    run.scalar("loss", float(step))
{ending}
"""
OPENINGS = {
    "stack": "stack = ExitStack(); run = stack.enter_context(tracker.open(RunConfig(name='x')))",
    "enter": "run = tracker.open(RunConfig(name='x')).__enter__()",
    "start": "run = tracker.start(RunConfig(name='x'))",
}
ENDINGS = {
    "ends": ("", 0),
    "raises": ("raise ZeroDivisionError", 1),
    "exits": ("sys.exit(3)", 3),
    "finishes": ("run.finish(); run.finish()", 0),
    "deletes": ("del tracker, run", 0),
}


@pytest.mark.parametrize(
    ("opening", "ending"),
    [*(("enter", ending) for ending in ENDINGS), *itertools.product(("stack", "start"), ("ends", "deletes"))],
)
def test_a_script_that_ends_with_its_run_open_exits_with_everything_written(opening, ending, tmp_path):
    code, status = ENDINGS[ending]
    script = SCRIPT.format(opening=OPENINGS[opening], ending=code)
    ended = scripts.run(script, tmp_path, str(tmp_path))
    assert ended.returncode == status, ended.stderr
    (path,) = tmp_path.glob("*.jsonl")
    assert [(record.step, record.value) for record in read_run(path)[1]] == [(step, float(step)) for step in range(5)]
    assert not list((tmp_path / "backlog").glob("*"))
    assert ("ZeroDivisionError" in ended.stderr) == (ending == "raises")


def test_bare_runs_are_closed_at_exit_too(tmp_path):
    script = SCRIPT.format(opening=OPENINGS["start"], ending="").replace("accumulator=accumulator", "accumulator=None")
    ended = scripts.run(script, tmp_path, str(tmp_path))
    assert ended.returncode == 0, ended.stderr
    (path,) = tmp_path.glob("*.jsonl")
    assert len(read_run(path)[1]) == 5


def test_start_and_finish_are_what_a_with_block_is(recorded):
    tracker = recorded()
    run = tracker.tracker.start(RunConfig(name="run"))
    run.scalar("loss", 1.0)
    with pytest.raises(TrackerValueError, match=r"run\.finish\(\)"):
        tracker.tracker.start(RunConfig(name="again"))
    run.finish()
    run.finish()
    assert not run.is_open
    assert tracker.run.points("loss") == {0: 1.0}
    with tracker.open() as run:
        run.finish()  # inside of the block, which then has nothing to close
        assert not run.is_open
    assert len(tracker.backend.runs) == 2


@pytest.mark.parametrize("accumulator", [None, AccumulatorConfig(device="cpu")])
def test_open_takes_a_run_config(accumulator):
    tracker = tracker_from_config(NullTrackerConfig(accumulator=accumulator))
    with pytest.raises(TrackerTypeError, match=r"a RunConfig, not 'name'; pass RunConfig\(name="), tracker.open("name"):
        pass


def test_a_context_block_restores_what_was_set_before(recorded):
    tracker = recorded()
    with tracker.open() as run:
        run.set_context({"stage": "train", "phase": "1"})
        with run.context(stage="eval"):
            run.scalar("loss", 1.0)
        run.scalar("loss", 2.0)
        assert run.get_context() == {"stage": "train", "phase": "1"}
    assert tracker.run.points("loss", stage="eval", phase="1") == {0: 1.0}
    assert tracker.run.points("loss", stage="train", phase="1") == {0: 2.0}


def test_the_run_that_has_just_ended_can_be_gone_on_with(recorded):
    tracker = recorded(sync_every=4)
    with tracker.open("fit") as run:
        for step in range(6):
            run.set_step(step)
            run.scalar("loss", float(step))
    run_id = tracker.tracker.run_id
    tracker.tracker.resume_last()
    with tracker.open("test") as run:
        run.set_step(6)
        run.scalar("accuracy", 1.0)
    assert tracker.tracker.run_id == run_id
    assert len(tracker.backend.runs) == 1
    assert tracker.run.points("loss") == {step: float(step) for step in range(6)}
    assert tracker.run.points("accuracy") == {6: 1.0}


def test_the_backends_own_run_is_reached_on_the_thread_that_owns_it(recorded):
    tracker = recorded()
    with tracker.open() as run:
        run.scalar("loss", 1.0)
        (future,) = run.backend(lambda backend: backend.properties.name).values()
        assert future.result(10) == "run"
        (failing,) = run.backend(lambda backend: 1 / 0).values()
        with pytest.raises(ZeroDivisionError):
            failing.result(10)
        run.add_hparams({"lr": 0.1})
    assert tracker.run.properties.hparams == {"lr": 0.1}
    assert tracker.run.points("loss") == {0: 1.0}


class Serving(torch.nn.Module):
    """A model that holds the tracker's run, as a module that logs does."""

    def __init__(self, run, tracker):
        super().__init__()
        self.linear = torch.nn.Linear(2, 2)
        self.run, self.tracker = run, tracker

    def forward(self, x):
        y = self.linear(x)
        self.run.scalar("mean", y.mean())
        self.run.bins("outputs", y)
        return y


@pytest.fixture
def model(recorded):
    tracker = recorded()
    with tracker.open() as run:
        model = Serving(run, tracker.tracker)
        model(torch.ones(1, 2))
    return model


def test_a_model_serves_after_its_run_has_ended(model):
    x = torch.ones(3, 2)
    expected = model.linear(x)
    assert torch.equal(model(x), expected)
    assert torch.allclose(torch.compile(model, fullgraph=True, backend="aot_eager")(x), expected)
    assert torch.allclose(torch.optim.swa_utils.AveragedModel(model)(x), expected)


@pytest.mark.parametrize("is_open", [True, False])
def test_an_exported_program_knows_nothing_of_the_tracker(recorded, is_open):
    tracker = recorded()
    with tracker.open() as run:
        model = Serving(run, tracker.tracker)
        if not is_open:
            run.finish()
        program = torch.export.export(model, (torch.ones(3, 2),))
        traced = torch.jit.trace(model, torch.ones(3, 2), check_trace=True)
    assert not [node for node in program.graph.nodes if "d9d_tracker" in str(node.target)]
    assert "d9d_tracker" not in str(traced.graph)
    assert torch.equal(traced(torch.ones(3, 2)), model.linear(torch.ones(3, 2)))


def test_a_sweep_of_runs_with_names_of_their_own_does_not_run_out_of_slots(recorded):
    tracker = recorded(max_scalars=4, max_histograms=2)
    for number in range(30):
        with tracker.open(f"run {number}") as run:
            run.scalars({f"{number}/a": 1.0, f"{number}/b": 2.0})
            run.bins(f"{number}/h", torch.ones(2))
    assert [len(run.records) for run in tracker.backend.runs.values()] == [3] * 30


def test_slots_that_compiled_code_knows_stay_right(recorded):
    tracker = recorded(max_scalars=3)
    with tracker.open("first") as run:
        run.scalar("eager", 1.0)
        log = torch.compile(lambda value: run.scalar("compiled", value), backend="aot_eager")
        log(torch.tensor(2.0))
        run.scalar("behind", 3.0)
    with tracker.open("second") as run:
        run.scalar("other", 4.0)
        log(torch.tensor(5.0))
    first, second = tracker.backend.runs.values()
    assert {r.name: r.value for r in first.records} == {"eager": 1.0, "compiled": 2.0, "behind": 3.0}
    assert {r.name: r.value for r in second.records} == {"other": 4.0, "compiled": 5.0}
