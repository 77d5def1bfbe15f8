"""Trainings in processes of their own, forked from one that has paid for the imports of a framework."""

import gc
import importlib
import multiprocessing
import os
import sys
import traceback
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from d9d_tracker import AccumulatorConfig, JsonlTrackerConfig
from tests.ends import end_with_interpreter

_START = multiprocessing.get_context("forkserver")
_SECONDS = 200.0


class Forks:
    """Runs functions of a module that lies beside the tests, each in a fresh copy of a process that has imported it."""

    def __init__(self, module: str):
        self._pipe, theirs = _START.Pipe()
        self._process = _START.Process(target=_serve, args=(theirs, module))
        self._process.start()
        theirs.close()

    def close(self) -> None:
        self._pipe.close()
        self._process.join(_SECONDS)
        self._process.kill()
        self._process.join()

    def run(self, output: Path, function: str, *arguments: Any) -> int:
        """Run a function to its end; return the exit code."""
        (code,) = self._run(output, function, arguments, [{}])
        return code

    def run_ranks(self, output: Path, function: str, *arguments: Any) -> None:
        """Run a function on two ranks as ``torchrun`` starts them, which keeps their store; both have to succeed."""
        store = dist.TCPStore("127.0.0.1", 0, None, True, wait_for_workers=False)
        shared = {
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True",
            "TORCHELASTIC_RUN_ID": "forked", "TORCHELASTIC_RESTART_COUNT": "0", "TORCHELASTIC_MAX_RESTARTS": "0",
            "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0", "GROUP_WORLD_SIZE": "1",
            "GLOO_SOCKET_IFNAME": "lo",
        }  # fmt: skip
        ranks = [{**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(2)]
        assert self._run(output, function, arguments, ranks) == [0, 0], output.read_text()[-3000:]

    def _run(self, output: Path, function: str, arguments: Any, environments: list[dict[str, str]]) -> list[int]:
        self._pipe.send((str(output), function, arguments, environments))
        assert self._pipe.poll(_SECONDS), output.read_text()[-3000:]
        return self._pipe.recv()


def _serve(pipe: Any, name: str) -> None:
    torch.set_num_threads(1)  # a child has only the forking thread: a pool made before would be waited for in vain
    sys.path.insert(0, str(Path(__file__).parent))
    module = importlib.import_module(name)
    gc.freeze()  # children do not look through what they were forked with, or take it apart
    while True:
        try:
            output, function, arguments, environments = pipe.recv()
        except EOFError:
            return
        children = []
        for environment in environments:
            child = os.fork()
            if child == 0:
                _live(getattr(module, function), arguments, output, environment)
            children.append(child)
        pipe.send([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children])


def _live(function: Any, arguments: Any, output: str, environment: dict[str, str]) -> None:
    log = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ |= environment
    code = 1
    try:
        function(*arguments)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        end_with_interpreter(code)


def config_in(folder, **accumulator):
    """Configuration of a backend in a folder, for another process."""
    accumulator |= {"device": "cpu", "sync_every": 4, "backlog_dir": folder / "backlog", "distributed_timeout": 60}
    return JsonlTrackerConfig(path=folder / "runs", accumulator=AccumulatorConfig(**accumulator))
