"""The writer that people know from ``torch.utils.tensorboard``, without a file of its own."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter
from typing_extensions import override


class _File:
    def __init__(self, folder: Path, put: Callable[[int, Any], None]):
        self._folder, self._put = folder, put

    def get_logdir(self) -> str:
        return str(self._folder)

    def add_summary(self, summary: Any, global_step: int | None = None, walltime: float | None = None) -> None:
        for value in summary.value:
            self._put(int(global_step or 0), value)


class Writer(SummaryWriter):
    """A writer whose values go elsewhere: a second file in a run's folder would hide the first."""

    def __init__(self, folder: Path, put: Callable[[int, Any], None]):
        self._file = _File(folder, put)
        super().__init__(str(folder))

    @override
    def _get_file_writer(self) -> Any:
        return self._file
