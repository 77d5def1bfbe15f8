"""Files that survive the machine: writes that are whole or not there at all."""

import errno
import os
from pathlib import Path

from d9d_tracker.log import logger, warn_once


def append(file: int, size: int, data: bytes) -> None:
    """Write at the end of a file and wait until it is on disk; leave the file as it was if that fails."""
    position = size
    try:
        while position < size + len(data):
            position += os.pwrite(file, memoryview(data)[position - size :], position)
        os.fsync(file)
    except BaseException:
        os.ftruncate(file, size)
        raise


def not_stored(error: OSError, what: str, closed: bool, path: Path) -> OSError:
    """Return the error of a failed write that says what becomes of what was to be written."""
    fate = "lost with the closing run" if closed else "kept in memory for the next flush"
    words = f"{error.strerror}: {what} are {fate}. Free space, or bring the folder back"
    return OSError(error.errno, words, str(path))


def path_of_run(folder: Path, run_id: str, resumes: bool, ending: str = "") -> Path:
    """Return where a run is in a folder of runs: a file of that ending, or a folder; say if a resumed one is gone."""
    kind, name = "file" if ending else "folder", f"{run_id}{ending}"
    path = folder.expanduser().absolute() / name
    if path.name != name:
        raise ValueError(f"the loaded state names the run {run_id!r}, which is not the name of a {kind}: load another")
    if resumes and not path.exists():
        logger.warning("run %r: its %s is gone and starts anew, without what it held: %s", run_id, kind, path)
    return path


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable, where the file system can; where it cannot, warn once."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        # A folder above the runs may be one that this user passes through and must not list.
        if error.errno not in (errno.EACCES, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
            raise
        words = "%s: names cannot be synced here (%s), so new files may be lost in a power cut"
        warn_once(folder, words, folder, error)
