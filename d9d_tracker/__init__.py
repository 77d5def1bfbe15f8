"""The metric tracker for compiled PyTorch training loops.

Values accumulate into preallocated device buffers, travel to the host once per window, and are written to a backend
that a configuration chooses.
"""

from .accumulator import AccumulatingRun, AccumulatingTracker
from .base import BaseTracker, BaseTrackerRun, RunConfig
from .config import (
    AccumulatorConfig,
    Binning,
    ExponentialBinning,
    IntegerBinning,
    LinearBinning,
    TrackerConfig,
)
from .errors import TrackerError, TrackerTypeError, TrackerValueError
from .factory import AnyTrackerConfig, register_backend, tracker_from_config
from .provider.aim.config import AimConfig
from .provider.console import ConsoleTrackerConfig
from .provider.jsonl import JsonlTrackerConfig
from .provider.mlflow.config import MLflowConfig
from .provider.multi import MultiConfig
from .provider.null import NullTrackerConfig
from .provider.tensorboard.config import TensorBoardConfig
from .provider.wandb.config import WandbConfig
from .record import Histogram, Record

__all__ = [
    "AccumulatingRun",
    "AccumulatingTracker",
    "AccumulatorConfig",
    "AimConfig",
    "AnyTrackerConfig",
    "BaseTracker",
    "BaseTrackerRun",
    "Binning",
    "ConsoleTrackerConfig",
    "ExponentialBinning",
    "Histogram",
    "IntegerBinning",
    "JsonlTrackerConfig",
    "LinearBinning",
    "MLflowConfig",
    "MultiConfig",
    "NullTrackerConfig",
    "Record",
    "RunConfig",
    "TensorBoardConfig",
    "TrackerConfig",
    "TrackerError",
    "TrackerTypeError",
    "TrackerValueError",
    "WandbConfig",
    "register_backend",
    "tracker_from_config",
]
