"""torchtitan: a logger for its ``MetricsProcessor``.

trainer = Trainer(config)
attach(trainer.metrics_processor, JsonlTrackerConfig(path="runs"), name="llama3")
"""

from importlib import import_module
from typing import Any

from torch import distributed

from d9d_tracker.base import BaseTrackerRun, RunConfig

from .framework_run import AnyTracker, FrameworkRun


class TrackerLogger:
    """Has the methods of torchtitan's ``BaseLogger``. torchtitan logs on one rank, every ``log_freq`` steps.

    A configuration therefore opens its run there alone. For a run of all ranks, to which the model may log at every
    step, open it by ``tracker.open`` on all of them and pass the open run: it stays yours to step and to close.

    Args:
        tracker: A configuration, a tracker that one process uses, or an open run.
        name: Name of the run, unless it is open.
        hparams: Hyperparameters of the run: ``trainer.config`` as a dictionary, for example.
        context: Tags of all that torchtitan logs.
        monitor: Whether to call ``run.monitor()``. Its steps are those that torchtitan logs.
    """

    def __init__(
        self,
        tracker: AnyTracker | BaseTrackerRun,
        name: str = "torchtitan",
        hparams: dict[str, Any] | None = None,
        context: dict[str, str] | None = None,
        *,
        monitor: bool = False,
    ):
        self.tracked = FrameworkRun(tracker, RunConfig(name=name), is_alone=True, monitor=monitor)
        self.tracked.add_hparams(hparams or {})
        self._context = context

    def log(self, metrics: dict[str, Any], step: int) -> None:
        """Log numbers; at one step the last one stands.

        Args:
            metrics: Names and values; what is no number is left out.
            step: torchtitan's step, which begins with 1.
        """
        self.tracked.set_step(step)
        self.tracked.log(metrics, step, self._context)

    def close(self) -> None:
        """Close the run, unless it was given open."""
        self.tracked.finish()


def attach(
    processor: Any,
    tracker: AnyTracker | BaseTrackerRun,
    name: str = "torchtitan",
    hparams: dict[str, Any] | None = None,
    pp_schedule: str = "1F1B",
    *,
    monitor: bool = False,
) -> TrackerLogger | None:
    """Have a ``MetricsProcessor`` log to a run as well, on the rank on which torchtitan logs.

    With pipeline parallelism that is the first rank of the last stage, as only it has the loss. With torchtitan's
    ``save_for_all_ranks`` every rank logs: to a run of its own, or with the tag ``rank`` to a run that was given open.

    Args:
        processor: ``trainer.metrics_processor``.
        tracker: A configuration, a tracker that one process uses, or an open run.
        name: Name of the run, unless it is open.
        hparams: Hyperparameters of the run.
        pp_schedule: torchtitan's pipeline schedule.
        monitor: See ``TrackerLogger``.

    Returns:
        The logger; None on the other ranks.
    """
    rank = distributed.get_rank() if distributed.is_initialized() else 0
    is_each, is_given = processor.config.save_for_all_ranks, isinstance(tracker, BaseTrackerRun)
    if is_given and hparams:
        FrameworkRun(tracker).add_hparams(hparams)  # of which rank 0 takes note
    if not is_each and rank != _rank_of_the_loss(processor.parallel_dims, pp_schedule):
        return None
    context = {"rank": str(rank)} if is_each and is_given else None
    own_name, own_hparams = f"{name} rank {rank}" if is_each else name, None if is_given else hparams
    logger = TrackerLogger(tracker, own_name, own_hparams, context, monitor=monitor)
    container = import_module("torchtitan.components.metrics").LoggerContainer()  # it seldom is where types are checked
    container.add_logger(processor.logger)
    container.add_logger(logger)
    processor.logger = container
    return logger


def _rank_of_the_loss(parallel_dims: Any, pp_schedule: str) -> int:
    if not parallel_dims.pp_enabled or pp_schedule == "ZBVZeroBubble":  # whose last stage is on the first ranks
        return 0
    return parallel_dims.world_size // parallel_dims.pp * (parallel_dims.pp - 1)
