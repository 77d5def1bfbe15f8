"""torchtitan: a logger for its ``MetricsProcessor``.

trainer = Trainer(config)
attach(trainer.metrics_processor, JsonlTrackerConfig(path="runs"), name="llama3")
"""

from importlib import import_module
from typing import Any

from torch import distributed

from d9d_tracker.base import BaseTracker, BaseTrackerRun, RunConfig
from d9d_tracker.config import TrackerConfig

from .framework_run import FrameworkRun


class TrackerLogger:
    """Has the methods of torchtitan's ``BaseLogger``. torchtitan logs on one rank, every ``log_freq`` steps.

    A configuration therefore opens its run there alone. For a run of all ranks, to which the model may log at every
    step, open it by ``tracker.open`` on all of them and pass the open run: it stays yours to step and to close.

    Args:
        tracker: A configuration, a tracker that one process uses, or an open run.
        name: Name of the run, unless it is open.
        hparams: Hyperparameters of the run: ``trainer.config`` as a dictionary, for example.
    """

    def __init__(
        self,
        tracker: BaseTracker[Any] | TrackerConfig | BaseTrackerRun,
        name: str = "torchtitan",
        hparams: dict[str, Any] | None = None,
    ):
        self.tracked = FrameworkRun(tracker, RunConfig(name=name), is_alone=True)
        self.tracked.add_hparams(hparams or {})

    def log(self, metrics: dict[str, Any], step: int) -> None:
        """Log numbers.

        Args:
            metrics: Names and values; what is no number is left out.
            step: torchtitan's step, which begins with 1.
        """
        self.tracked.log(metrics, step)

    def close(self) -> None:
        """Close the run, unless it was given open."""
        self.tracked.finish()


def attach(
    processor: Any,
    tracker: BaseTracker[Any] | TrackerConfig | BaseTrackerRun,
    name: str = "torchtitan",
    hparams: dict[str, Any] | None = None,
    pp_schedule: str = "1F1B",
) -> TrackerLogger | None:
    """Have a ``MetricsProcessor`` log to a run as well, on the rank on which torchtitan logs.

    With pipeline parallelism that is the first rank of the last stage, as only it has the loss.

    Args:
        processor: ``trainer.metrics_processor``.
        tracker: A configuration, a tracker that one process uses, or an open run.
        name: Name of the run, unless it is open.
        hparams: Hyperparameters of the run.
        pp_schedule: torchtitan's pipeline schedule.

    Returns:
        The logger; None on the other ranks.
    """
    metrics = import_module("torchtitan.components.metrics")  # by name, because it seldom is where type checkers run
    rank = metrics._get_metrics_rank(parallel_dims=processor.parallel_dims, pp_schedule=pp_schedule)
    if distributed.is_initialized() and distributed.get_rank() != rank:
        return None
    logger = TrackerLogger(tracker, name, hparams)
    container = metrics.LoggerContainer()
    container.add_logger(processor.logger)
    container.add_logger(logger)
    processor.logger = container
    return logger
