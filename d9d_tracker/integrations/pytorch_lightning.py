"""``d9d_tracker.integrations.lightning`` for ``pytorch_lightning``, also where ``lightning`` is imported as well."""

from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import CSVLogger

from .lightning_callback import CallbackPart
from .lightning_logger import LoggerPart


class TrackerLogger(LoggerPart, CSVLogger):
    """See ``d9d_tracker.integrations.lightning.TrackerLogger``."""


class TrackerCallback(CallbackPart, Callback):
    """See ``d9d_tracker.integrations.lightning.TrackerCallback``."""
