"""Scripts in processes that are forked from one which has imported torch: a second less each than ``python -c``."""

import ctypes
import gc
import multiprocessing
import os
import subprocess
import sys
import traceback
import types
from pathlib import Path

_START = multiprocessing.get_context("forkserver")


def run(script: str, folder: Path, *arguments: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    """Run a script as ``python -c`` does; its output goes to files in the folder."""
    outputs = folder / "stdout", folder / "stderr"
    process = _START.Process(target=_run, args=(script, arguments, outputs))
    process.start()
    process.join(timeout)
    process.kill()  # if it has not ended
    process.join()
    status = process.exitcode
    assert status is not None
    return subprocess.CompletedProcess(script, status, *(output.read_text() for output in outputs))


def _run(script: str, arguments: tuple[str, ...], outputs: tuple[Path, Path]) -> None:
    gc.freeze()  # what it was forked with is not looked through, and not taken apart at its end
    for number, path in enumerate(outputs, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    sys.argv = ["-c", *arguments]
    sys.modules["__main__"] = types.ModuleType("__main__")
    status = 0
    try:
        exec(script, vars(sys.modules["__main__"]))
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        traceback.print_exc()
        status = 1
    ctypes.pythonapi.Py_Exit(status)  # as any process ends, with its interpreter
