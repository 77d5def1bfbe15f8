"""Starts trainings by forking, so that a killed training costs its few steps and not the imports.

Reads a line, the arguments of `training.train` as a JSON object, and answers with the process id; reads another, and
answers with the exit status when the process has ended.
"""

import gc
import json
import os
import sys
import traceback
from pathlib import Path

import torch
import training

torch.set_num_threads(1)  # a child has only the forking thread: a pool made before would be waited for in vain


def main() -> None:
    # Compiling something, with its gradients, imports the compiler and has it make its tables.
    layer = torch.nn.Linear(3, 3)
    torch.compile(lambda x: layer(x).relu().square().mean())(torch.ones(2, 3)).backward()
    torch.compiler.reset()
    gc.freeze()  # lives do not look through what they were forked with
    for line in sys.stdin:
        order = json.loads(line)
        pid = os.fork()
        if pid == 0:
            _train(order)
        print(pid, flush=True)
        sys.stdin.readline()  # until then the id is taken, dead or alive, and safe to kill
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


def _train(order: dict) -> None:
    folder = Path(order["folder"])
    log = os.open(folder / "output", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    status = 1
    try:
        training.train(**order | {"folder": folder})
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    main()
