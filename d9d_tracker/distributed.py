"""Checkpoints across numbers of ranks."""

import os
from typing import Any

from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.state_dict_loader import load as load_checkpoint
from torch.distributed.checkpoint.storage import StorageReader

from d9d_tracker.pipeline.job_state import saved_ranks

from .accumulator import AccumulatingTracker


def load(
    tracker: AccumulatingTracker,
    checkpoint_id: str | os.PathLike[str] | None = None,
    *,
    key: str = "tracker",
    storage_reader: StorageReader | None = None,
) -> None:
    """Load a tracker from a checkpoint that any number of ranks saved with ``torch.distributed.checkpoint``.

    With the same number of ranks, ``max_scalars``, ``max_histograms`` and ``sync_every``, a plain
    ``dcp.load({"tracker": tracker}, ...)`` does as well. With another number of ranks, the saved ones are divided among
    the new ones: nothing they had logged is lost, and nothing counts twice. Call it on every rank, before ``open``; it
    does not communicate.

    Args:
        tracker: The tracker, with no run open.
        checkpoint_id: Folder of the checkpoint.
        key: Under which key of the saved dict the tracker is.
        storage_reader: How to read the checkpoint, if not as files in a folder.

    Raises:
        ValueError: If there is no tracker under that key, or its state does not fit. See
            ``AccumulatingTracker.load_state_dict``.
    """
    if storage_reader is None:
        if checkpoint_id is None:
            raise ValueError("load: neither checkpoint_id nor storage_reader was given; pass one of them")
        storage_reader = FileSystemReader(checkpoint_id)
    saved = storage_reader.read_metadata().state_dict_metadata

    def values_below(prefix: str) -> dict[str, Any]:
        values: dict[str, Any] = dict.fromkeys(name for name in saved if name.startswith(prefix))
        load_checkpoint(values, storage_reader=storage_reader, no_dist=True)
        return {name.removeprefix(prefix): value for name, value in values.items()}

    if f"{key}.world_size" in saved:
        size = values_below(f"{key}.world_size")[""]
        ranks = list(saved_ranks(tracker.rank, tracker.world_size, size)) or [0]
        states = {str(rank): values_below(f"{key}.ranks.{rank}.") for rank in ranks}
        tracker.load_state_dict({"world_size": size, "ranks": states})
    elif f"{key}.table" in saved:
        tracker.load_state_dict({"world_size": 1, "ranks": {"0": values_below(f"{key}.")}})
    else:
        raise ValueError(f"load: the checkpoint has no tracker under {key!r}; pass the key it was saved under")
