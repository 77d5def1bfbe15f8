"""One argument turns the instrument panel on, whatever the framework."""

from types import SimpleNamespace

import pytest

from d9d_tracker import RunConfig, tracker_from_config
from d9d_tracker.integrations import torchtitan
from d9d_tracker.integrations.d9d import D9dLoopTracker
from d9d_tracker.integrations.framework_run import FrameworkRun

STEPS = range(1, 7)


def of_accelerate(config, monitor):
    from accelerate.state import PartialState

    from d9d_tracker.integrations.accelerate import AccelerateTracker

    PartialState(cpu=True)
    try:
        tracked = AccelerateTracker(config, monitor=monitor)
        for step in STEPS:
            tracked.log({"loss": 1.0}, step)
        tracked.finish()
    finally:
        PartialState._reset_state()


def of_lightning(config, monitor):
    from d9d_tracker.integrations.lightning import TrackerLogger

    logger = TrackerLogger(config, monitor=monitor)
    logger.begin_again()
    for step in STEPS:
        logger.log_metrics({"loss": 1.0}, step)
    logger.close()


def of_transformers(config, monitor):
    from d9d_tracker.integrations.transformers import TrackerCallback

    callback = TrackerCallback(config, monitor=monitor)
    assert callback.run.is_open
    for step in STEPS:
        callback.on_step_begin(None, SimpleNamespace(global_step=step - 1), None)
        callback.run.scalar("loss", 1.0)
    callback.close()


def of_torchtitan(config, monitor):
    logger = torchtitan.TrackerLogger(config, monitor=monitor)
    for step in STEPS:
        logger.log({"loss": 1.0}, step)
    logger.close()


def of_d9d(config, monitor):
    with D9dLoopTracker(config, monitor).open(SimpleNamespace(model_dump=lambda: {"name": "run"})) as run:
        for step in STEPS:
            run.write(SimpleNamespace(name="loss", step=step, context={}), SimpleNamespace(value=1.0))


def of_an_open_run(config, monitor):
    with tracker_from_config(config).open(RunConfig(name="run")) as run:
        tracked = FrameworkRun(run, monitor=monitor)
        for step in STEPS:
            run.set_step(step)
            tracked.log({"loss": 1.0})


WAYS = [of_accelerate, of_lightning, of_transformers, of_torchtitan, of_d9d, of_an_open_run]


@pytest.mark.parametrize("monitor", [True, False])
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@pytest.mark.filterwarnings("ignore")
def test_a_framework_turns_it_on(config, stored, way, monitor):
    way(config, monitor)
    _, points = stored()
    assert points["loss",] == dict.fromkeys(STEPS, 1.0)
    assert (set(points.get(("time/step",), {})) >= set(STEPS[:-1])) == monitor


def test_a_run_without_an_accumulator_says_that_it_measures_nothing(config, stored, caplog):
    of_torchtitan(config.model_copy(update={"accumulator": None}), True)
    assert set(stored()[1]) == {("loss",)}
    assert "monitor=True: a run without an accumulator measures nothing" in caplog.text
