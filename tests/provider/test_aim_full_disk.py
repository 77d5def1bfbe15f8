"""A disk that fills up under an Aim repository: nothing waits for ever, and what was accepted is there afterwards."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from d9d_tracker.base import RunConfig
from d9d_tracker.provider.aim.full_disk import check_room

from .conftest import AimStorage, key_of

FULL_DISK = """
import gc, os, resource, signal, sys
from pathlib import Path
from d9d_tracker.base import RunConfig
from d9d_tracker.provider.aim import AimConfig
from d9d_tracker.provider.aim.tracker import AimTracker

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

def limit(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

def logs_of(run):
    return Path(sys.argv[1]).glob(f".aim/*/chunks/{run.id}/*.log")

def log(run, steps):
    '''Return the steps that were refused.'''
    refused = []
    for step in steps:
        run.set_step(step)
        try:
            run.scalar("loss", step)
        except OSError:
            refused.append(step)
    return refused

quiet = {"log_system_params": False, "capture_terminal_logs": False, "system_tracking_interval": None}
config = AimConfig(repo=sys.argv[1], **quiet)
tracker = AimTracker.from_config(config)
# Room for some steps more, then none until the run is closed.
try:
    with tracker.open(RunConfig(name="full to the end")) as run:
        log(run, range(10))
        run.flush()
        limit(max(file.stat().st_size for file in logs_of(run)) + 4000)
        refused = log(run, range(10, 100))
        assert refused and refused[0] > 10, refused
        try:
            run.flush()
            raise SystemExit("the flush told nothing")
        except OSError:
            pass
except OSError as error:
    assert "Aim needs 8 MiB" in str(error), error
else:
    raise SystemExit("the close told nothing")
limit(resource.RLIM_INFINITY)
del run
gc.collect()
print(tracker.run_id, *range(refused[0]), flush=True)

# Room again while the run is open, often enough for writes to fail before, between and after the parts of a point.
for slack in range(5000, 7000, 200):
    with tracker.open(RunConfig(name="full for a while")) as run:
        log(run, range(10))
        run.flush()
        limit(max(file.stat().st_size for file in logs_of(run)) + slack)
        refused = log(run, range(10, 60))
        limit(resource.RLIM_INFINITY)
        assert refused
        # What was refused is given up.
        assert log(run, [60]) == []
        run.flush()
        print(tracker.run_id, *(step for step in range(61) if step not in refused), flush=True)
        if slack == 6800:
            os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(scope="module")
def runs(aim_repo: Path) -> list[tuple[str, list[int]]]:
    """The id and accepted steps of a run that closed on a full disk, and of ten that went on, the last one killed."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    arguments = [sys.executable, "-c", FULL_DISK, str(aim_repo)]
    # What must not happen is that it waits for ever.
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=120, check=False)
    lines = [line.split() for line in done.stdout.splitlines()]
    assert len(lines) == 11, done.stderr
    return [(run_id, [int(step) for step in steps]) for run_id, *steps in lines]


def test_a_close_on_a_full_disk_keeps_what_was_accepted(
    runs: list[tuple[str, list[int]]], aim_storage: AimStorage
) -> None:
    run_id, accepted = runs[0]
    following = len(accepted)
    with aim_storage.tracker({"run_id": run_id}).open(RunConfig(name="again")) as run:
        run.rewind(following)
        run.set_step(following)
        run.scalar("loss", following)
    assert aim_storage.scalars(run_id) == {key_of("loss", step): float(step) for step in range(following + 1)}


def test_what_comes_after_a_full_disk_is_whole(runs: list[tuple[str, list[int]]], aim_storage: AimStorage) -> None:
    for run_id, accepted in runs[1:]:
        assert aim_storage.scalars(run_id) == {key_of("loss", step): float(step) for step in accepted}


def test_room_is_found_where_the_system_cannot_reserve_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "posix_fallocate")  # as on macOS
    check_room(tmp_path)
    assert list(tmp_path.iterdir()) == []
