"""Accelerate trains, saves, stops and goes on: one run, exact values, on one process and on several."""

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState

from d9d_tracker import RunConfig, tracker_from_config
from d9d_tracker.integrations.accelerate import AccelerateTracker

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def fresh():
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    PartialState._reset_state()


def train(tracked, folder, steps, resume=None):
    """Train a line, saving after step 5."""
    accelerator = Accelerator(log_with=tracked, cpu=True)
    accelerator.init_trackers("project", config={"lr": 0.1})
    torch.manual_seed(0)
    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model, optimizer = accelerator.prepare(model, optimizer)
    accelerator.register_for_checkpointing(tracked)
    begin = 0
    if resume:
        accelerator.load_state(resume)
        begin = 6
    losses = {}
    for step in range(begin, steps):
        inputs = torch.randn(8, 2, generator=torch.Generator().manual_seed(step))
        loss = (model(inputs) - inputs.sum(1, keepdim=True)).square().mean()
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        accelerator.log({"loss": loss.item(), "note": "text"}, step=step)
        losses[step] = loss.item()
        if step == 5:
            accelerator.save_state(folder)
    return accelerator, losses


def test_it_logs_and_goes_on(config, stored, tmp_path):
    whole, losses = train(AccelerateTracker(config.model_copy(update={"path": tmp_path / "w"})), tmp_path / "a", 11)
    whole.end_training()
    tracked = AccelerateTracker(config, name="line")
    train(tracked, str(tmp_path / "checkpoint"), 8)
    tracked.finish()
    tracked = AccelerateTracker(config, name="line")
    accelerator, _ = train(tracked, str(tmp_path / "other"), 11, resume=str(tmp_path / "checkpoint"))
    assert accelerator.get_tracker("d9d_tracker", unwrap=True) is tracked.tracker
    accelerator.end_training()
    run, points = stored()
    assert (run["name"], run["hparams"]) == ("line", {"lr": 0.1})
    assert points == {("loss",): losses}


def test_a_run_that_is_open_is_used_and_left_open(config, stored, tmp_path):
    with tracker_from_config(config).open(RunConfig(name="mine")) as run:
        run.set_step(3)
        accelerator = Accelerator(log_with=AccelerateTracker(run), cpu=True)
        accelerator.init_trackers("project", config={"lr": 0.1})
        accelerator.log({"loss": 1.0}, step=3)
        accelerator.end_training()
        run.scalar("after", 2.0)
    stored_run, points = stored()
    assert stored_run["hparams"] == {"lr": 0.1}
    assert points == {("loss",): {3: 1.0}, ("after",): {3: 2.0}}


@pytest.mark.parametrize("how", ["config", "open"])
def test_on_two_processes_the_main_one_logs_and_none_is_waited_for(stored, tmp_path, forks, how):
    forks.run_ranks(tmp_path / "output", "be_one_of_two", tmp_path, how)
    _, points = stored()
    assert points["loss",] == {step: float(step) for step in range(6)}
    if how == "open":
        assert points["rank",] == dict.fromkeys(range(6), 0.5)


def test_tags_of_a_call_are_those_of_its_points(config, stored):
    tracked = AccelerateTracker(config)
    accelerator = Accelerator(log_with=tracked, cpu=True)
    accelerator.init_trackers("project")
    accelerator.log({"loss": 1.0}, step=0, log_kwargs={"d9d_tracker": {"context": {"stage": "eval"}}})
    accelerator.end_training()
    assert stored()[1] == {("loss", ("stage", "eval")): {0: 1.0}}
