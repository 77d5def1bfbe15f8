"""Room on disk: on a full one, RocksDB waits for ever to write a table, even once there is room again."""

import os
import tempfile
from pathlib import Path
from typing import Any

import aim

# Aim's databases hold one MiB each in memory, which they write as a table when they are closed.
_ROOM = 8 << 20


def check_room(repo: Path) -> None:
    """Refuse to have tables written where there is no room for them.

    Args:
        repo: Folder of the local repository.

    Raises:
        OSError: If the disk, or a quota, has less than 8 MiB left.
    """
    try:
        with tempfile.TemporaryFile(dir=repo) as file:
            os.posix_fallocate(file.fileno(), 0, _ROOM)
    except OSError as error:
        message = f"{error.strerror}: Aim needs {_ROOM >> 20} MiB to close or mend a run. Free some"
        raise OSError(error.errno, message, str(repo)) from error


def abandon(run: aim.Run) -> None:
    """Leave a run as a kill would, instead of closing it: what its log holds is found there by whoever opens it next.

    Args:
        run: The run, open for writing, in a local repository.
    """
    repo: Any = run.repo
    for resources in (run._resources, *(_container(repo, name, run.hash)._resources for name in ("meta", "seqs"))):
        resources.finalizer.detach()  # pyright: ignore[reportOptionalMemberAccess] - set while the run is open


def _container(repo: Any, name: str, run_id: str) -> Any:
    return repo.request_container(name, run_id, read_only=False)
