"""Configuration of the Weights & Biases backend; importing it does not import its SDK."""

from pathlib import Path
from typing import Literal

from d9d_tracker.config import TrackerConfig


class WandbConfig(TrackerConfig):
    """Configuration of the backend that writes to Weights & Biases.

    Attributes:
        provider: Discriminator, always ``"wandb"``.
        project: Project of the run, or None for what ``WANDB_PROJECT`` says.
        entity: User or team that owns the project, or None for ``WANDB_ENTITY`` or the default of the API key.
        group: Group that the run belongs to, or None for what ``WANDB_RUN_GROUP`` says, if anything.
        tags: Tags of the run; without any, those of ``WANDB_TAGS``.
        mode: ``"online"``; ``"offline"``, which writes to local files for ``wandb sync``; ``"disabled"``; or None for
            what ``WANDB_MODE`` or ``wandb offline`` says, online by default.
        dir: Folder in which W&B creates its folder ``wandb``, or None for ``WANDB_DIR`` or the working directory.
    """

    provider: Literal["wandb"] = "wandb"
    project: str | None = None
    entity: str | None = None
    group: str | None = None
    tags: list[str] = []
    mode: Literal["online", "offline", "disabled"] | None = None
    dir: Path | None = None
