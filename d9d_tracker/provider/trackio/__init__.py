"""Configuration of the Trackio backend; importing it does not import its SDK."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from d9d_tracker.config import TrackerConfig


class TrackioConfig(TrackerConfig):
    """Configuration of the backend that writes to Trackio's database on this machine.

    ``trackio show --project NAME`` opens its page, and ``trackio sync`` uploads a project to a Space of Hugging Face.

    Attributes:
        provider: Discriminator, always ``"trackio"``.
        project: Project of the run.
        group: Group that the run belongs to, if any.
        dir: Folder of the database, or None for ``TRACKIO_DIR`` or Trackio's own. One process writes to one folder.
    """

    provider: Literal["trackio"] = "trackio"
    project: str = Field(min_length=1)
    group: str | None = None
    dir: Path | None = None
