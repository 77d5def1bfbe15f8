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
from .factory import AnyTrackerConfig, tracker_from_config
from .provider.aim.config import AimConfig
from .provider.console import ConsoleTrackerConfig
from .provider.jsonl import JsonlTrackerConfig
from .provider.null import NullTrackerConfig
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
    "NullTrackerConfig",
    "Record",
    "RunConfig",
    "TrackerConfig",
    "TrackerError",
    "TrackerTypeError",
    "TrackerValueError",
    "tracker_from_config",
]
