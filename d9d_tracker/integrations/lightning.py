"""Lightning: a logger, and a callback that sets the step, watches the model and saves the tracker's state.

    logger = TrackerLogger(JsonlTrackerConfig(path="runs"), name="first")
    trainer = Trainer(logger=logger, callbacks=[TrackerCallback(logger, gradients=True)])

These are the classes of ``lightning``, or of ``pytorch_lightning`` if that alone was imported before. Where both are,
``d9d_tracker.integrations.pytorch_lightning`` has the others.
"""

import sys
from typing import TYPE_CHECKING

from .lightning_callback import CallbackPart
from .lightning_logger import LoggerPart

if TYPE_CHECKING or "lightning" in sys.modules or "pytorch_lightning" not in sys.modules:
    from lightning.pytorch.callbacks import Callback
    from lightning.pytorch.loggers import CSVLogger
else:
    from pytorch_lightning.callbacks import Callback
    from pytorch_lightning.loggers import CSVLogger


class TrackerLogger(LoggerPart, CSVLogger):
    """Logs what ``self.log`` collects at Lightning's own step, and is a run for everything else.

    Fit, validate and test are one run, opened when it is first needed and closed by ``close`` or at exit. Every rank
    logs, so that a value is the mean of the ranks' values. It has a folder as Lightning's CSVLogger does, of which it
    is one: ``save_dir/name/version``, for checkpoints and what else Lightning saves.

    Args:
        tracker: A tracker, or the configuration of one, also as plain data: ``{"provider": "jsonl", "path": "runs"}``.
        name: Name of the run.
        description: Free text, if any.
        save_dir: Where folders of runs are; by default the trainer's ``default_root_dir``.
        version: Name of this life's folder; by default, one that no other has.
        prefix: Put before the names of what Lightning logs, with a hyphen.
        monitor: Whether to call ``run.monitor()``. Without a ``TrackerCallback`` its steps are those that are logged.
    """


class TrackerCallback(CallbackPart, Callback):
    """Sets the step, tags what modules log outside of training, and keeps the tracker's state in the checkpoint.

    A checkpoint is gone on with by ``fit`` alone: what is stored stays as it is when one is tested, validated or
    predicted with. A training that begins anew, by another trainer for example, is another run.

    Args:
        logger: The logger; by default the one that the trainer has. The callback does nothing if that is another one,
            as it is with ``fast_dev_run``.
        **watch: What ``run.watch`` is called with for the module in training; without any, it is not watched.
    """
