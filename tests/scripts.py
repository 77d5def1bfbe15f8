"""Scripts in processes that are forked from one which has imported torch: a second less each than ``python -c``."""

import ctypes
import gc
import multiprocessing
import os
import signal
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
    if process.exitcode is None:
        os.killpg(process.pid, signal.SIGKILL)  # with what it has started
        process.join()
    status = process.exitcode
    assert status is not None
    return subprocess.CompletedProcess(script, status, *(output.read_text() for output in outputs))


_LAUNCH = """
import os
from torch.distributed.run import main
os.environ |= {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
main()
"""


def run_ranks(script: Path, ranks: int, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a file by ``torchrun``, whose launcher alone is forked: it starts the ranks as it always does."""
    options = "--standalone", f"--nproc-per-node={ranks}"
    return run(_LAUNCH, folder, *options, str(script), *arguments, timeout=120)


def _run(script: str, arguments: tuple[str, ...], outputs: tuple[Path, Path]) -> None:
    gc.freeze()  # what it was forked with is not looked through, and not taken apart at its end
    os.setsid()
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
