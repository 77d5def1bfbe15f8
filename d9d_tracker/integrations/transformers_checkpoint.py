"""Where the Trainer of transformers keeps a checkpoint, and which of them it has loaded."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from d9d_tracker.log import logger


def save(state: dict[str, Any], run_id: str | None, output: str | None, step: int, rank: int) -> None:
    """Save a tracker's state in the folder that the Trainer has just made of a step; nothing if it made none here."""
    made = [folder for folder in _folders(output, step) if folder.is_dir()]
    if made:
        folder = max(made, key=lambda one: one.stat().st_mtime)  # the others are of earlier trials
        draft = folder / f"{_file(run_id, rank)}.draft"
        torch.save(state, draft)
        draft.replace(folder / _file(run_id, rank))


def load(
    saved: Any, name: str, told: Iterable[object], output: str | None, step: int, rank: int
) -> dict[str, Any] | None:
    """Return the state of the run that the loaded ``trainer_state.json`` names; None, with a word, if it is not found.

    What callbacks of this kind ``saved`` there are their runs and output folders; several are told apart by ``name``.
    """
    known = [saved["attributes"]] if isinstance(saved, dict) else [one["attributes"] for one in reversed(saved)]
    if len(known) > 1:
        known = [one for one in known if one["name"] == name]
    named = [Path(folder) for folder in told if isinstance(folder, str | Path)]
    files = [
        folder / _file(one["run_id"], rank)
        for one in known
        for folder in (*named, *_folders(output, step), *_folders(one["output_dir"], step))
    ]
    if not known and named:  # saved by version 0.2.0
        files = [named[0] / f"d9d_tracker-{rank}.pt"]
    for file in files:
        if file.exists():
            return torch.load(file, weights_only=True)
    tried = ", ".join(sorted({str(file) for file in files}))
    logger.warning(
        "the Trainer goes on at step %d, but this is a new run, because %s. Pass TrackerCallback(..., "
        "checkpoint=FOLDER) to go on with the run of the checkpoint",
        step,
        f"there is none of {tried}" if tried else "the checkpoint's trainer_state.json names none",
    )
    return None


def _file(run_id: str | None, rank: int) -> str:
    return f"d9d_tracker-{re.sub(r'[^A-Za-z0-9_.-]', '-', str(run_id))}-{rank}.pt"


def _folders(output: str | None, step: int) -> list[Path]:
    """Where the Trainer may save a step, or that of a trial."""
    folder = Path(output or ".")
    return [folder / f"checkpoint-{step}", *folder.glob(f"*/checkpoint-{step}")]
