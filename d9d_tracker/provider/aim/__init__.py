"""Configuration of the Aim backend; importing it does not import Aim."""

from typing import Literal

from pydantic import Field

from d9d_tracker.config import TrackerConfig


class AimConfig(TrackerConfig):
    """Configuration of the backend that writes to an Aim repository.

    Attributes:
        provider: Discriminator, always ``"aim"``.
        repo: Folder of the repository, created if missing, or ``aim://host:port`` of an Aim server.
        log_system_params: Store installed packages, git state, command line and environment variables with the run,
            except for those that look like secrets by their names.
        capture_terminal_logs: Store what the program prints with the run.
        system_tracking_interval: Seconds between two measurements of CPU, GPU and memory use, or None for none.
    """

    provider: Literal["aim"] = "aim"
    repo: str
    log_system_params: bool = True
    capture_terminal_logs: bool = True
    system_tracking_interval: float | None = Field(default=10, gt=0)
