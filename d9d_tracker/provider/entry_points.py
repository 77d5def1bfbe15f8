"""Backends of other packages: they register themselves under a name, by an entry point."""

from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any

from d9d_tracker.base import BaseTracker
from d9d_tracker.config import TrackerConfig

GROUP = "d9d_tracker.providers"


@dataclass(frozen=True)
class Provider:
    """What an entry point of the group ``d9d_tracker.providers`` refers to; its name is the configs' ``provider``.

    Attributes:
        config: Type of the backend's configuration. Its module should not import an SDK.
        tracker: Type of its tracker, or ``"module:class"`` to import it only when it is chosen.
    """

    config: type[TrackerConfig]
    tracker: type[BaseTracker[Any]] | str


def third_party(name: str) -> Provider | None:
    """Load the backend that an installed package registers under a name; None if there is none."""
    for entry_point in entry_points(group=GROUP, name=name):
        try:
            provider = entry_point.load()
        except (ImportError, AttributeError) as error:
            raise ImportError(f"provider {name!r} is registered as {entry_point.value}: {error}") from error
        if not isinstance(provider, Provider):
            raise TypeError(
                f"provider {name!r} is registered as {entry_point.value}, which is {provider!r} and not a "
                "d9d_tracker.provider.entry_points.Provider"
            )
        return provider
    return None
