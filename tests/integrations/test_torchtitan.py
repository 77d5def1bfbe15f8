"""torchtitan's MetricsProcessor logs to a run on the rank that logs, beside its own loggers."""

import importlib.util
from types import SimpleNamespace

import pytest

from d9d_tracker import RunConfig, tracker_from_config
from d9d_tracker.integrations.torchtitan import TrackerLogger, attach


def test_it_logs_numbers_at_torchtitans_steps(config, stored):
    logger = TrackerLogger(config, name="llama3", hparams={"lr": 0.1})
    for step in (1, 10, 20):
        logger.log({"loss_metrics/global_avg_loss": 1 / step, "note": "text"}, step)
    logger.close()
    run, points = stored()
    assert (run["name"], run["hparams"]) == ("llama3", {"lr": 0.1})
    assert points == {("loss_metrics/global_avg_loss",): {1: 1.0, 10: 0.1, 20: 0.05}}


def test_a_run_that_is_open_is_used_and_left_open(config, stored):
    with tracker_from_config(config).open(RunConfig(name="mine")) as run:
        logger = TrackerLogger(run)
        for step in range(1, 4):
            run.set_step(step)
            run.scalar("every step", step)
            if step == 3:
                logger.log({"loss": 1.0}, step)
        logger.close()
    assert stored()[1] == {("every step",): {1: 1.0, 2: 2.0, 3: 3.0}, ("loss",): {3: 1.0}}


@pytest.mark.skipif(
    not importlib.util.find_spec("torchtitan"), reason="torchtitan is not installed: pip install torchtitan"
)
def test_its_own_container_calls_it_beside_others(config, stored):
    from torchtitan.components.metrics import BaseLogger, LoggerContainer, MetricsProcessor

    seen = []

    class Other(BaseLogger):
        def log(self, metrics, step):
            seen.append(step)

    processor = SimpleNamespace(logger=Other(), parallel_dims=SimpleNamespace(pp_enabled=False))
    logger = attach(processor, config)
    assert logger is not None
    assert isinstance(processor.logger, LoggerContainer)
    processor.logger.log({"loss": 2.0}, 10)
    MetricsProcessor.close(processor)
    assert seen == [10]
    assert stored()[1] == {("loss",): {10: 2.0}}
    assert not logger.tracked.is_open
