"""Device-side accumulation in front of a backend."""

from .run import AccumulatingRun
from .tracker import AccumulatingTracker

__all__ = ["AccumulatingRun", "AccumulatingTracker"]
