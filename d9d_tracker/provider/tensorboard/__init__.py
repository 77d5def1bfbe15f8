"""Configuration of the TensorBoard backend; importing it does not import TensorBoard."""

from pathlib import Path
from typing import Literal

from d9d_tracker.config import TrackerConfig


class TensorBoardConfig(TrackerConfig):
    """Configuration of the backend that writes TensorBoard event files.

    Attributes:
        provider: Discriminator, always ``"tensorboard"``.
        log_dir: Folder of the runs, created if missing: what ``tensorboard --logdir`` is given. Each run is one folder
            ``<run id>`` in it.
    """

    provider: Literal["tensorboard"] = "tensorboard"
    log_dir: Path
