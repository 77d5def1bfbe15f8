"""The crash harness: trains, kills, restarts until the training finishes, and reads what the backend then holds."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

_HERE = Path(__file__).parent
_SOURCES = [_HERE.parents[1], _HERE.parents[1] / "kernels"]


class ForkServer:
    """Starts trainings in processes forked from one that has imported everything."""

    def __init__(self) -> None:
        path = os.pathsep.join([*map(str, _SOURCES), os.environ.get("PYTHONPATH", "")])
        self._process = subprocess.Popen(
            [sys.executable, str(_HERE / "fork_server.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path},
        )

    def start(self, folder: Path, provider: str, faults: list[str], end: tuple[int, int] | None = None) -> int:
        """Start a training, one at a time, and return its process id."""
        order = {"folder": str(folder), "config": config_of(folder, provider), "faults": faults, "end": end}
        self._send(json.dumps(order))
        return int(self._answer())

    def wait(self) -> int:
        """Wait until the training has ended, and return its exit status: negative for a signal."""
        self._send("wait")
        return int(self._answer())

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _send(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()


def train(server: ForkServer, folder: Path, provider: str, faults: list[str] | None = None) -> None:
    """Train to the end, uninterrupted or for the rest."""
    server.start(folder, provider, faults or [])
    assert server.wait() == 0, _output(folder)


def train_until(
    server: ForkServer, folder: Path, provider: str, faults: list[str], step: int, end: signal.Signals
) -> None:
    """Train until the process sends itself a signal, in a step."""
    server.start(folder, provider, faults, (step, end))
    assert server.wait() in (-end, 1), _output(folder)
    assert _progress(folder) == step, _output(folder)


def kill_until_done(server: ForkServer, folder: Path, provider: str, seed: int, kills: int) -> Counter[str]:
    """Train, ending the process at random moments, at most ``kills`` times by SIGKILL, then let it finish.

    One life in four ends by SIGTERM instead, which the training's handler makes an exit, and one in four has a backend
    that fails at times.

    Args:
        server: Starts the lives.
        folder: Where the training writes.
        provider: The backend.
        seed: Of the moments.
        kills: How many times to kill, at most.

    Returns:
        How many lives ended in which way.
    """
    moments = random.Random(seed)
    ends: Counter[str] = Counter()
    while ends["SIGKILL"] < kills:
        name = "SIGTERM" if moments.random() < 0.25 else "SIGKILL"
        life = server.start(folder, provider, ["outage"] if moments.random() < 0.25 else [])
        if not _wait_for_moment(folder, life, moments):
            assert server.wait() == 0, _output(folder)
            ends["finished"] += 1
            break
        os.kill(life, getattr(signal, name))
        status = server.wait()
        assert status in (-getattr(signal, name), 1, 0), _output(folder)
        ends["finished" if status == 0 else name] += 1
        if status == 0:
            break
    else:
        train(server, folder, provider)
    return ends


def _wait_for_moment(folder: Path, life: int, moments: random.Random) -> bool:
    """Wait until some step has passed and a little longer, or, one time in six, at random in the first second."""
    if moments.random() < 1 / 6:
        time.sleep(moments.uniform(0, 1))
        return True
    first = _progress(folder)
    target = first + moments.randrange(1, 16)
    while _progress(folder) < target:
        if not _is_alive(life):
            return False
        time.sleep(0.001)
    time.sleep(moments.uniform(0, 0.01))
    return True


def _progress(folder: Path) -> int:
    path = folder / "progress"
    return int(path.read_text() or -1) if path.exists() else -1


def _is_alive(process: int) -> bool:
    stat = Path(f"/proc/{process}/stat")
    return stat.exists() and stat.read_text().rsplit(")", 1)[1].split()[0] != "Z"


def _output(folder: Path) -> str:
    return (folder / "output").read_text()


def config_of(folder: Path, provider: str) -> dict[str, Any]:
    accumulator = {
        "writer": "thread",  # where faults are planted
        "sync_every": 5,
        "max_scalars": 8,
        "max_histograms": 4,
        "device": "cpu",
        "backlog_dir": str(folder / "backlog"),
    }
    backend = {
        "jsonl": {"path": str(folder / "runs")},
        "aim": {"repo": str(folder), "log_system_params": False, "capture_terminal_logs": False},
    }
    return {"provider": provider, "accumulator": accumulator, **backend[provider]}


def content(folder: Path, provider: str) -> Any:
    """Return everything the backend holds of the run in a folder, doubles and all, but for ids and times.

    A kill before the first checkpoint leaves another run behind, which nobody knows to resume.
    """
    run_id = (folder / "run_id").read_text()
    return _jsonl_content(folder, run_id) if provider == "jsonl" else _aim_content(folder, run_id)


def _jsonl_content(folder: Path, run_id: str) -> list[str]:
    lines = (folder / "runs" / f"{run_id}.jsonl").read_text().splitlines()
    plain = [re.sub(r',"time":[0-9.]+', "", line).replace(run_id, "id") for line in lines]
    # A point of a step before the checkpoint's window is not cut with it, and may stand twice; half a step of a spread
    # is not written again on resuming. Of these, what readers see is compared: the last line of a step.
    seen: dict[Any, str] = {}
    for line in plain:
        if '"name":"late"' in line or '"name":"tokens/' in line:
            fields = json.loads(line)
            seen[fields["name"], fields["step"]] = line
    others = [line for line in plain if not ('"name":"late"' in line or '"name":"tokens/' in line)]
    return others + sorted(seen.values())


def _aim_content(folder: Path, run_id: str) -> dict[Any, Any]:
    import aim  # which has no wheel for some Pythons
    from aim.sdk.index_manager import RepoIndexManager
    from aim.storage.context import Context

    repo = aim.Repo(str(folder))
    RepoIndexManager.get_index_manager(repo).index(run_id)  # as Aim's server does; a run is not read without
    repo.container_pool.clear()
    run = aim.Run(run_id, repo=repo, read_only=True)
    content: dict[Any, Any] = {"name": run.name, "hparams": run["hparams"]}
    for kind in ("metric", "distributions"):
        for index, names in run.meta_run_tree.get(("typed_traces", kind), {}).items():
            context = Context(run.meta_run_tree["contexts", index])
            for series in names:
                if not series.startswith("__system__"):
                    sequence = run._get_sequence(kind, series, context)
                    steps, (values, *_) = sequence.data.items_list()
                    content[kind, series, str(context.to_dict())] = list(zip(steps, map(_plain, values), strict=True))
    return content


def _plain(value: Any) -> Any:
    if type(value).__name__ == "Distribution":
        return (*value.range, value.weights.tolist())
    return repr(value)
