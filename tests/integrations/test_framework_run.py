"""What a framework decides of a run's life costs no point."""

import pytest
import torch

from d9d_tracker import RunConfig
from d9d_tracker.integrations.framework_run import FrameworkRun


@pytest.mark.parametrize("accumulates", [True, False])
def test_a_run_that_is_asked_for_after_its_end_keeps_what_it_had(config, stored, accumulates):
    if not accumulates:
        config = config.model_copy(update={"accumulator": None})
    tracked = FrameworkRun(config, RunConfig(name="x"))
    tracked.add_hparams({"early": 1})
    tracked.set_step(3)
    tracked.log({"loss": 1.0, "none": None}, 3)
    tracked.finish()
    tracked.log({"test": 2.0}, 3)
    tracked.log({"late": 4.0}, 1)
    tracked.add_hparams({"later": 2})
    tracked.finish()
    run, points = stored()
    assert run["hparams"] == {"early": 1, "later": 2}
    assert points == {("loss",): {3: 1.0}, ("test",): {3: 2.0}, ("late",): {1: 4.0}}


def test_the_context_of_the_loop_is_not_that_of_the_framework(config, stored):
    tracked = FrameworkRun(config)
    tracked.run.set_context({"stage": "train"})
    tracked.log({"loss": 1.0}, 0)
    tracked.run.scalar("own", 2.0)
    tracked.finish()
    assert set(stored()[1]) == {("loss",), ("own", ("stage", "train"))}


def test_steps_that_come_again_after_a_load_in_one_process_are_set_again(config, stored):
    tracked, state = FrameworkRun(config), {}
    for step in range(10):
        tracked.set_step(step)
        tracked.log({"loss": float(step)}, step)
        if step == 5:
            state = tracked.state_dict()
    tracked.load_state_dict(state)
    for step in range(6, 9):
        tracked.set_step(step)
        assert tracked.step == step
        tracked.log({"loss": 10.0 * step}, step)
        tracked.run.scalar("own", float(step))
    tracked.finish()
    _, points = stored()
    assert points["loss",] == {step: step if step < 6 else 10.0 * step for step in range(9)}
    assert points["own",] == {step: step for step in range(6, 9)}


def test_what_it_does_not_have_itself_is_the_runs_which_that_opens(config, stored):
    tracked, model = FrameworkRun(config), torch.nn.Linear(2, 1)
    watch = tracked.watch(model, gradients=True)
    tracked.scalar("own", 2.0)
    model(torch.ones(1, 2)).sum().backward()
    torch.optim.SGD(model.parameters()).step()
    tracked.finish()
    watch.remove()
    assert set(stored()[1]) == {("own",), ("gradients/weight",), ("gradients/bias",)}
