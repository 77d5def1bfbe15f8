"""The metric tracker for compiled PyTorch training loops.

Values accumulate into preallocated device buffers, travel to the host once per window, and are written to a backend
that a configuration chooses.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .accumulator import AccumulatingRun, AccumulatingTracker
    from .backend import RecordRun, RecordTracker
    from .base import BaseTracker, BaseTrackerRun, RunConfig
    from .config import AccumulatorConfig, Binning, ExponentialBinning, IntegerBinning, LinearBinning, TrackerConfig
    from .delivery.report import NonFinite, RunReport
    from .errors import TrackerError, TrackerTypeError, TrackerValueError
    from .factory import AnyTrackerConfig, register_backend, tracker_from_config
    from .provider.aim import AimConfig
    from .provider.console import ConsoleTrackerConfig
    from .provider.jsonl import JsonlTrackerConfig
    from .provider.mlflow import MLflowConfig
    from .provider.multi import MultiConfig
    from .provider.null import NullTrackerConfig
    from .provider.tensorboard import TensorBoardConfig
    from .provider.trackio import TrackioConfig
    from .provider.wandb import WandbConfig
    from .reading import StoredRun, read
    from .record import Histogram, Record

# Imported when they are first asked for, because torch, pydantic and ours take time, and a script may want one of them.
_ROOMS = {
    "accumulator": ("AccumulatingRun", "AccumulatingTracker"),
    "backend": ("RecordRun", "RecordTracker"),
    "base": ("BaseTracker", "BaseTrackerRun", "RunConfig"),
    "config": (
        "AccumulatorConfig",
        "Binning",
        "ExponentialBinning",
        "IntegerBinning",
        "LinearBinning",
        "TrackerConfig",
    ),
    "delivery.report": ("NonFinite", "RunReport"),
    "errors": ("TrackerError", "TrackerTypeError", "TrackerValueError"),
    "factory": ("AnyTrackerConfig", "MultiConfig", "register_backend", "tracker_from_config"),  # resolves MultiConfig
    "provider.aim": ("AimConfig",),
    "provider.console": ("ConsoleTrackerConfig",),
    "provider.jsonl": ("JsonlTrackerConfig",),
    "provider.mlflow": ("MLflowConfig",),
    "provider.null": ("NullTrackerConfig",),
    "provider.tensorboard": ("TensorBoardConfig",),
    "provider.trackio": ("TrackioConfig",),
    "provider.wandb": ("WandbConfig",),
    "reading": ("StoredRun", "read"),
    "record": ("Histogram", "Record"),
}
_ROOM_OF = {name: room for room, names in _ROOMS.items() for name in names}

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
    "NonFinite",
    "NullTrackerConfig",
    "Record",
    "RecordRun",
    "RecordTracker",
    "RunConfig",
    "RunReport",
    "StoredRun",
    "TensorBoardConfig",
    "TrackerConfig",
    "TrackerError",
    "TrackerTypeError",
    "TrackerValueError",
    "TrackioConfig",
    "WandbConfig",
    "read",
    "register_backend",
    "tracker_from_config",
]


def __getattr__(name: str) -> Any:
    if name not in _ROOM_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{_ROOM_OF[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
