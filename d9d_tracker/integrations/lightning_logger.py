"""What ``TrackerLogger`` does in either of Lightning's packages."""

import os
import secrets
import time
from argparse import Namespace
from collections.abc import Mapping
from typing import Any

from d9d_tracker.base import RunConfig

from .framework_run import AnyRun, AnyTracker, FrameworkRun


class LoggerPart:
    """See ``d9d_tracker.integrations.lightning.TrackerLogger``."""

    def __init__(
        self,
        tracker: AnyTracker,
        name: str = "lightning",
        description: str | None = None,
        *,
        save_dir: str | os.PathLike[str] | None = None,
        version: str | None = None,
        prefix: str = "",
        monitor: bool = False,
    ):
        base: Any = super()
        base.__init__(save_dir or ".", name, version or f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}")
        self.tracked = FrameworkRun(tracker, RunConfig(name=name, description=description), monitor=monitor)
        self.is_stepped = False  # by a callback; otherwise what Lightning logs sets the step
        self._folder = None if save_dir is None else os.fspath(save_dir)
        self._before_names = f"{prefix}-" if prefix else ""

    @property
    def run(self) -> AnyRun:
        """The run, which is opened now if it is not open."""
        return self.tracked.run

    @property
    def experiment(self) -> Any:
        """The run: ``self.logger.experiment.bins(...)``, also in compiled code, and with ``fast_dev_run`` nothing.

        What is not open yet is opened by what is first logged to it: Lightning asks for this before it has read the
        checkpoint.
        """
        return self.tracked.run if self.tracked.is_open else self.tracked

    @property
    def save_dir(self) -> str:
        """Where folders of runs are."""
        return self._folder or "."

    def settle_in(self, folder: str) -> None:
        """Say where folders of runs are, if that was not said; and that the step is set."""
        self._folder, self.is_stepped = self._folder or folder, True

    def begin_again(self) -> None:
        """Close the run, and log to another one from now on."""
        before = self.tracked
        self.tracked = before.anew(before.properties)
        self.tracked.set_context(before.get_context())

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Log what Lightning has collected, at its step."""
        if step is not None and not self.is_stepped:
            self.tracked.set_step(step)
        self.tracked.log({f"{self._before_names}{name}": value for name, value in metrics.items()}, step)

    def log_hyperparams(self, params: dict[str, Any] | Namespace | None = None, *args: Any, **kwargs: Any) -> None:
        """Log hyperparameters, before the run is opened or later."""
        self.tracked.add_hparams(vars(params) if isinstance(params, Namespace) else dict(params or {}))

    def log_graph(self, model: Any, input_array: Any = None) -> None:
        """Open the run of a training without a callback, which has no checkpoint to read; compiled code cannot."""
        if not self.is_stepped and model.trainer.state.fn == "fit":
            self.run.get_context()

    def save(self) -> None:
        """Do nothing: Lightning asks for it whenever something was logged."""

    def finalize(self, status: str) -> None:
        """Make everything durable; close the run if ``status`` is ``"failed"``."""
        if status == "failed":
            self.close()
        elif self.tracked.is_open:
            self.tracked.run.flush()

    def close(self) -> None:
        """Close the run. Logged to again, it is opened again."""
        self.tracked.finish()
