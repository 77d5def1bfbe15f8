"""Device-side accumulation in front of a backend."""

from .delivery import DeliveryReport
from .run import AccumulatingRun
from .tracker import AccumulatingTracker

__all__ = ["AccumulatingRun", "AccumulatingTracker", "DeliveryReport"]
