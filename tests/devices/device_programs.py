"""What ranks do whose values are on a device without a bank."""

from pathlib import Path

import programs
import torch
from devices import device


def everything(rank: int, folder: Path, name: str) -> dict:
    """Log in every way on a device."""
    if name == device.NAME:
        device.install()
    torch.set_default_device(name)
    return programs.everything(rank, folder, 12, {"device": name, "sync_every": 4})
