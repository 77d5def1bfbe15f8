"""What ``accelerator.log`` is given is what is stored: the same points as in a tracker that keeps a list of them."""

import signal

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate_oracle import Witness, train
from lightning_oracle import stored

from d9d_tracker.integrations.accelerate import AccelerateTracker

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def fresh():
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    PartialState._reset_state()


TRAININGS = {
    "every step": [({"loss": step / 3}, step) for step in range(30)],
    "sparse, from 1 on": [({"loss": step / 3}, step) for step in range(1, 400, 25)],
    "several calls a step": [({name: step / 3}, step) for step in range(9) for name in ("loss", "rate")],
    "without steps": [({"loss": call / 3}, None) for call in range(30)],
    "one without a step after others": [({"loss": 1.0}, 7), ({"loss": 2.0}, None), ({"rate": 3.0}, None)],
    "an evaluation of earlier steps": [
        *(({"loss": step / 3}, step) for step in range(10)),
        *(({"eval": step / 7}, step) for step in range(2, 10, 3)),
    ],
    "an earlier step once more": [({"x": 2.0}, 1), ({"x": 3.0}, 5), ({"x": 9.0}, 1)],
    "a step once more": [({"x": 2.0}, 1), ({"x": 3.0}, 1), ({"y": 1.0}, 2), ({"x": 4.0}, 2), ({"x": 4.5}, 2)],
    "not finite": [({"loss": value}, step) for step, value in enumerate((1.0, float("inf"), float("-inf")))],
    "tensors and NumPy's numbers": [({"a": torch.tensor(1.5), "b": np.float32(2.5), "c": np.array([3])}, 0)],
}


@pytest.mark.parametrize("training", TRAININGS)
@pytest.mark.parametrize("accumulates", [True, False])
def test_a_training(config, tmp_path, training, accumulates):
    if not accumulates:
        config = config.model_copy(update={"accumulator": None})
    witness = Witness()
    accelerator = Accelerator(log_with=[AccelerateTracker(config), witness], cpu=True)
    accelerator.init_trackers("project")
    for values, step in TRAININGS[training]:
        accelerator.log(values, step=step)
    accelerator.end_training()
    assert stored(tmp_path / "runs")[0] == witness.points


def test_what_is_no_number_is_left_out_and_named(config, tmp_path, caplog):
    accelerator = Accelerator(log_with=AccelerateTracker(config), cpu=True)
    accelerator.init_trackers("project")
    for step in range(2):
        values = {"text in accelerate": "x", "vector in accelerate": torch.zeros(3), "nothing in accelerate": None}
        accelerator.log({**values, "pair": {"a": 1, "b": True}, "loss": 1.0}, step=step)
    accelerator.end_training()
    points = {"pair/a": {0: 1.0, 1: 1.0}, "pair/b": {0: 1.0, 1: 1.0}, "loss": {0: 1.0, 1: 1.0}}
    assert stored(tmp_path / "runs")[0] == points
    assert caplog.text.count("in accelerate") == 3
    assert "Tensor of shape [3]" in caplog.text


def test_two_evaluations_are_told_apart_by_a_context(config, tmp_path):
    accelerator = Accelerator(log_with=AccelerateTracker(config), cpu=True)
    accelerator.init_trackers("project")
    for model in ("teacher", "student"):
        context = {"d9d_tracker": {"context": {"model": model}}}
        accelerator.log({"eval": float(len(model))}, step=3, log_kwargs=context)
    accelerator.log({"eval": 1.0}, step=3)
    accelerator.end_training()
    assert stored(tmp_path / "runs")[0] == {
        ("eval", ("model", "teacher")): {3: 7.0},
        ("eval", ("model", "student")): {3: 7.0},
        "eval": {3: 1.0},
    }


def test_a_hyperparameter_or_name_that_cannot_be_logged_stops_no_training(config, tmp_path, caplog):
    tracked = AccelerateTracker(config)
    accelerator = Accelerator(log_with=tracked, cpu=True)
    accelerator.init_trackers("project")
    tracked.tracker.scalar("sum", 1.0, reduce="sum")
    for step in range(3):
        accelerator.log({"sum": 2.0, "loss": float(step), "": 1.0}, step=step)
    accelerator.end_training()
    assert stored(tmp_path / "runs")[0] == {"sum": {0: 1.0}, "loss": {0: 0.0, 1: 1.0, 2: 2.0}}
    assert caplog.text.count("'sum' is not stored") == 1


@pytest.mark.parametrize("is_killed", [False, True])
def test_a_life_that_ends_and_another_that_goes_on(tmp_path, forks, is_killed):
    if is_killed:
        assert forks.run(tmp_path / "output", "train", tmp_path, 12, 10, False, True) == -signal.SIGKILL
    else:
        with pytest.raises(RuntimeError, match="as planned"):
            train(tmp_path, 12, at=10)
        AcceleratorState._reset_state(reset_partial_state=True)
        PartialState._reset_state()
    train(tmp_path, 14, resume=True)
    points, _ = stored(tmp_path / "runs")
    assert points["loss"] == {step: step / 3 + (step > 7) for step in range(14)}
    assert points["eval"] == {step: step / 7 for step in (3, 7, 11)}
