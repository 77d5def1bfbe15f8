"""A full disk under an Aim repository.

A write that fails half way tears RocksDB's log: it goes on taking writes, but whoever opens the database next reads the
log up to the tear only. And a database that has met a full disk waits for ever when it has to write a table, which Aim
has it do when it is closed, even once there is room again. So a torn run takes no more writes until it is opened anew.
"""

import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import aim

# Aim's two databases hold up to one MiB each in memory, which they write as tables when they are closed or opened.
_ROOM = 8 << 20


def check_room(repo: Path) -> None:
    """Refuse to open or close a run where there is no room for the tables that this writes."""
    try:
        with tempfile.TemporaryFile(dir=repo) as file:
            if hasattr(os, "posix_fallocate"):  # macOS has none
                os.posix_fallocate(file.fileno(), 0, _ROOM)
            else:
                file.write(bytes(_ROOM))
                file.flush()
    except OSError as error:
        message = f"{error.strerror}: Aim needs {_ROOM >> 20} MiB to open or close a run. Free some"
        raise OSError(error.errno, message, str(repo)) from error


def reopen(run: Any, open_run: Callable[[], aim.Run]) -> aim.Run:
    """Open a torn run anew, with all that was stored before the tear."""
    check_room(Path(run.repo.path))
    containers = _detach(run)
    run.close()
    _drop(run, containers)
    return open_run()


def abandon(run: Any) -> None:
    """Leave a run as a kill would: what was stored is found in the log by whoever opens it next."""
    containers = _detach(run)
    run._resources.finalizer.detach()
    for resource in run._resources.extra_resources:
        # Stops its thread first, then stores what the terminal showed last.
        with suppress(Exception):
            resource.close()
    _drop(run, containers)


def _detach(run: Any) -> dict[str, Any]:
    """Keep Aim from having tables written when it lets go of the databases."""
    containers = {name: run.repo.request_container(name, run.hash, read_only=False) for name in ("meta", "seqs")}
    for container in containers.values():
        container._resources.finalizer.detach()
    return containers


def _drop(run: Any, containers: dict[str, Any]) -> None:
    for name, container in containers.items():
        container._resources._db = None
        run.repo.container_pool.pop((name, run.hash, False), None)
