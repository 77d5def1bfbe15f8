"""Accelerate: a tracker for ``Accelerator(log_with=...)``.

tracked = AccelerateTracker(JsonlTrackerConfig(path="runs"), name="first")
accelerator = Accelerator(log_with=tracked)
accelerator.init_trackers("project", config={"lr": 0.1})
accelerator.register_for_checkpointing(tracked)
"""

from typing import Any

from accelerate.tracking import GeneralTracker, on_main_process

from d9d_tracker.base import BaseTrackerRun, RunConfig

from .framework_run import AnyRun, AnyTracker, FrameworkRun


class AccelerateTracker(GeneralTracker):
    """Logs what ``accelerator.log`` is given, on the main process.

    A configuration therefore opens its run there alone. For a run of all ranks, which the model may log to as well,
    open it by ``tracker.open`` on all of them and pass the open run. It stays yours to step, and to close before
    ``accelerator.end_training()``, which ends the process group.

    The run is opened when something is logged, after ``accelerator.load_state``, so that a registered tracker goes on
    with the run of the checkpoint.

    Args:
        tracker: A configuration, a tracker that one process uses, or an open run.
        name: Name of the run, unless it is open.
        monitor: Whether to call ``run.monitor()``. Its steps are those that are logged.
    """

    name = "d9d_tracker"
    requires_logging_directory = False
    main_process_only = True

    def __init__(self, tracker: AnyTracker | BaseTrackerRun, name: str = "accelerate", *, monitor: bool = False):
        super().__init__(_blank=True)
        self._tracked = FrameworkRun(tracker, RunConfig(name=name), is_alone=True, monitor=monitor)

    @property
    def tracker(self) -> AnyRun:
        """The run, which is opened now if it is not open."""
        return self._tracked.run

    @on_main_process
    def store_init_configuration(self, values: dict[str, Any]) -> None:
        """Add hyperparameters."""
        self._tracked.add_hparams(values)

    @on_main_process
    def log(self, values: dict[str, Any], step: int | None = None, **kwargs: Any) -> None:
        """Log numbers; at one step the last one stands.

        Args:
            values: Names and values. A dict becomes ``name/key``; text and vectors are left out and named once.
            step: The step, which may be an earlier one. Without it every call has a step of its own, as in W&B; with a
                run that was given open it is the current one.
            **kwargs: ``context``: tags of these values.
        """
        if step is None and not self._tracked.is_given:
            step = self._tracked.next_step
        if step is not None:
            self._tracked.set_step(step)
        self._tracked.log(values, step, kwargs.get("context"))

    @on_main_process
    def finish(self) -> None:
        """Close the run, unless it was given open."""
        self._tracked.finish()

    def state_dict(self) -> dict[str, Any]:
        """Return the tracker's state, for ``accelerator.register_for_checkpointing``."""
        return self._tracked.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the run of the checkpoint."""
        self._tracked.load_state_dict(state_dict)
