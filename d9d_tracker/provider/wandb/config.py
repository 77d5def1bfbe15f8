"""Configuration of the Weights & Biases backend; importing it does not import its SDK."""

from pathlib import Path
from typing import Literal

from d9d_tracker.config import TrackerConfig


class WandbConfig(TrackerConfig):
    """Configuration of the backend that writes to Weights & Biases.

    Attributes:
        provider: Discriminator, always ``"wandb"``.
        project: Project of the run.
        entity: User or team that owns the project, or None for the default of the API key.
        group: Group that the run belongs to, if any.
        tags: Tags of the run.
        mode: ``"online"``; ``"offline"``, which writes to local files for ``wandb sync``; or ``"disabled"``.
        dir: Folder in which W&B creates its folder ``wandb``; the working directory by default.
    """

    provider: Literal["wandb"] = "wandb"
    project: str
    entity: str | None = None
    group: str | None = None
    tags: list[str] = []
    mode: Literal["online", "offline", "disabled"] = "online"
    dir: Path | None = None
