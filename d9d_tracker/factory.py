"""From a configuration to a tracker."""

from importlib import import_module
from typing import Annotated, Any

from pydantic import Field

from .base import BaseTracker
from .config import TrackerConfig
from .provider.aim.config import AimConfig
from .provider.console import ConsoleTracker, ConsoleTrackerConfig
from .provider.jsonl import JsonlTracker, JsonlTrackerConfig
from .provider.null import NullTracker, NullTrackerConfig

AnyTrackerConfig = Annotated[
    NullTrackerConfig | ConsoleTrackerConfig | JsonlTrackerConfig | AimConfig,
    Field(discriminator="provider"),
]

# The extension point for a new backend: the type of its configuration, and its tracker. A tracker whose module imports
# an SDK is given as "module:class", so that the SDK is imported only when it is chosen.
_MAP: dict[type[TrackerConfig], type[BaseTracker[Any]] | str] = {
    NullTrackerConfig: NullTracker,
    ConsoleTrackerConfig: ConsoleTracker,
    JsonlTrackerConfig: JsonlTracker,
    AimConfig: "d9d_tracker.provider.aim.tracker:AimTracker",
}


def tracker_from_config(config: TrackerConfig) -> BaseTracker[Any]:
    """Create the tracker that a configuration describes.

    Args:
        config: Configuration of one of the backends; ``pydantic.TypeAdapter(AnyTrackerConfig)`` makes one from data.

    Returns:
        The backend's tracker, behind device-side accumulation unless ``config.accumulator`` is None.

    Raises:
        ImportError: If the backend's SDK is not installed; the message names the extra to install.
        TypeError: If no backend belongs to this type of configuration.
    """
    if type(config) not in _MAP:
        known = ", ".join(known.__name__ for known in _MAP)
        raise TypeError(f"no backend for a configuration of type {type(config).__name__}: known are {known}")
    tracker_type = _MAP[type(config)]
    if isinstance(tracker_type, str):
        tracker_type = _load(tracker_type, getattr(config, "provider", ""))
    tracker = tracker_type.from_config(config)
    if config.accumulator is None:
        return tracker
    from .accumulator import AccumulatingTracker

    return AccumulatingTracker(tracker, config.accumulator)


def _load(name: str, extra: str) -> type[BaseTracker[Any]]:
    module, _, attribute = name.partition(":")
    try:
        return getattr(import_module(module), attribute)
    except ImportError as error:
        if not module.startswith("d9d_tracker."):
            raise
        raise ImportError(
            f"provider {extra!r} needs its SDK, which cannot be imported ({error}): pip install 'd9d_tracker[{extra}]'"
        ) from error
