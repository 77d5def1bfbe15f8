"""``python -m sim.dry_run bench.histogram_gpu …``: a benchmark of the GPU day on the simulated GPU, in tiny sizes.

It is as on that machine, where no package is installed that is not carried there; and nothing is compiled.
"""

import contextlib
import importlib
import json
import sys
import time
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from .simulation import machine, simulated

_NOT_CARRIED = ("aim", "d9d", "lightning", "matplotlib", "mlflow", "tensorboard", "torchmetrics", "wandb")
_TINY = {"EVERY": 4, "CACHE_WORDS": 1, "GPT2_SHAPES": [(16, 8), (8,)], "SIZES": {"1K": 1 << 10, "2K": 1 << 11}}


class Profile:
    """Stands for torch's profiler: each piece of work is a kernel to it."""

    def __init__(self, activities: Any):
        self._before = machine().issued

    def __enter__(self) -> "Profile":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def export_chrome_trace(self, path: str) -> None:
        copy = {"cat": "gpu_memcpy", "name": "Memcpy DtoH (Device -> Pinned)", "args": {"bytes": 64}}
        events = [{"cat": "kernel"}] * (machine().issued - self._before)
        Path(path).write_text(json.dumps({"traceEvents": [*events, copy]}))


def main() -> object:
    """Run what the arguments name."""
    del sys.argv[0]
    sys.modules |= dict.fromkeys(_NOT_CARRIED)
    command = importlib.import_module(sys.argv[0])
    with contextlib.ExitStack() as stack:
        made = stack.enter_context(simulated(0))
        made.clock = time.perf_counter
        patches = [(torch.cuda, "_sleep", lambda _: None), (torch, "compile", lambda function, **_: function)]
        for module in [module for name, module in sys.modules.items() if name.startswith("bench.")]:
            patches += [(module, name, value) for name, value in _TINY.items() if hasattr(module, name)]
            patches += [(module, "profile", Profile)] if module.__name__ == "bench.counts" else []
        for patch in patches:
            stack.enter_context(mock.patch.object(*patch))
        return command.main()


if __name__ == "__main__":
    sys.exit(main())  # pyright: ignore[reportArgumentType] None or a number
