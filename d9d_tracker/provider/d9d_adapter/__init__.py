"""Configuration of the adapter to d9d; importing it does not import d9d."""

from typing import Any, Literal

from d9d_tracker.config import TrackerConfig


class D9dConfig(TrackerConfig):
    """Configuration of the backend that hands everything to a tracker of d9d 0.24 or newer.

    Attributes:
        provider: Discriminator, always ``"d9d"``.
        tracker: Configuration of d9d's tracker as data, such as ``{"provider": "log"}``.
    """

    provider: Literal["d9d"] = "d9d"
    tracker: dict[str, Any]
