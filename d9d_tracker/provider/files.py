"""Files that survive the machine: writes that are whole or not there at all."""

import os
from pathlib import Path


def append(file: int, size: int, data: bytes) -> None:
    """Write at the end of a file and wait until it is on disk; leave the file as it was if that fails.

    Args:
        file: Descriptor of the file.
        size: Its size, in bytes.
        data: What to add.

    Raises:
        OSError: If it cannot be written.
    """
    position = size
    try:
        while position < size + len(data):
            position += os.pwrite(file, memoryview(data)[position - size :], position)
        os.fsync(file)
    except BaseException:
        os.ftruncate(file, size)
        raise


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable.

    Args:
        folder: The folder.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
