import gc
import importlib.util
import multiprocessing
import os
import re
import signal
import sys

import pytest

# Before torch is imported, here or by a test's own processes. Where two tests run at once, each with a thread a core,
# it is quicker if threads that have nothing to do sleep instead of spinning, and no compiler starts its own processes.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")

# A shell that runs the tests in the background has SIGINT ignored, which all processes of the tests would inherit.
signal.signal(signal.SIGINT, signal.default_int_handler)


# What the processes of some tests are forked from; there is one such server for a process of pytest.
multiprocessing.get_context("forkserver").set_forkserver_preload(
    ["d9d_tracker.testing", "torch.distributed.tensor", "torch.distributed.checkpoint", "tests.ranks.preloaded"]
)

if importlib.util.find_spec("hypothesis") is not None:  # a machine with a GPU may lack it
    from hypothesis import settings

    settings.register_profile("without clocks", deadline=None)
    settings.load_profile("without clocks")

HAS_AIM = importlib.util.find_spec("aim") is not None
collect_ignore = [] if HAS_AIM else ["provider/test_aim.py", "provider/test_aim_full_disk.py"]


def pytest_report_header():
    if not HAS_AIM:
        return "Aim is not installed: its tests are skipped, provider/test_aim*.py left out; Python 3.12 has it"
    return None


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers():
    """Have one more than there are cores, because some tests wait: for processes, for ranks, for what is given up."""
    return (os.cpu_count() or 1) + 1


# A worker takes whole files, in this order: the longest first, or one is still at work when the others are done.
_LONGEST = (
    "kernels/test_machine_code.py",  # minutes where Triton has compiled none of it before
    "tests/test_matrix.py",
    "devices/test_suite.py",
    "ranks/test_failure.py",
    "ranks/test_checkpoint.py",
    "kernels/test_interpreted.py",
    "provider/test_contract.py",
    "provider/test_kills.py",
    "commands/test_demo.py",
    "ranks/test_sharded.py",
    "sim/test_gpu_suite.py",
    "compiled/test_graphs.py",
    "bench/test_bench.py",
    "provider/test_mlflow.py",
    "sim/test_trainings.py",
    "compiled/test_graph_content.py",
    "compiled/test_checkpointing.py",
    "compiled/test_inductor_ptx.py",
    "provider/test_replay.py",
    "compiled/test_regressions.py",
    "compiled/test_regions.py",
    "watch/test_norms_of_ranks.py",
    "watch/test_norms.py",
    "integrations/test_lightning_oracle.py",
    "tests/test_docs.py",
    "tests/test_check_step.py",
)


def pytest_collection_modifyitems(items):
    order = {name: place for place, name in enumerate(_LONGEST)}
    items.sort(key=lambda item: order.get("/".join(item.path.parts[-2:]), len(order)))
    for item in items if not HAS_AIM else ():
        if re.search(r"[\[_-]aim[\]_-]|_aim$", item.name):
            item.add_marker(pytest.mark.skip(reason="Aim is not installed: run it on Python 3.11 or 3.12"))


@pytest.fixture(scope="session", autouse=True)
def trackio_folder(tmp_path_factory):
    """Trackio writes to one folder a process, which it reads when it is first imported, by whomever."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRACKIO_DIR", str(tmp_path_factory.mktemp("trackio")))
        yield


def pytest_collection_finish():
    # With every framework imported, a full collection of garbage takes a third of a second; and nothing of it is.
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)  # most of what tracing makes lives on: to look for less was a tenth of its time
    guards = sys.modules.get("torch._dynamo.guards")
    if hasattr(guards, "profile_guard_manager"):
        # Whenever something is compiled, its guards are timed on empty caches, for a log: half of a small compilation.
        guards.profile_guard_manager = lambda *_: 0.0


class Recorded:
    """A tracker over the recording backend, and what arrived there."""

    def __init__(self, **config):
        # Not above: the kernels' tests run where torch, triton and numpy are all there is.
        from d9d_tracker import AccumulatingTracker, AccumulatorConfig
        from d9d_tracker.testing import RecordingTracker

        self.backend = RecordingTracker()
        self.tracker = AccumulatingTracker(self.backend, AccumulatorConfig(**config))

    def open(self, name: str = "run"):
        from d9d_tracker import RunConfig

        return self.tracker.open(RunConfig(name=name))

    @property
    def run(self):
        return self.backend.run


@pytest.fixture
def recorded(tmp_path):
    """A factory of trackers over the recording backend; keyword arguments configure the accumulator."""

    def make(**config) -> Recorded:
        defaults = {"device": "cpu", "backlog_dir": tmp_path / "backlog", "flush_timeout": 10.0}
        return Recorded(**{**defaults, **config})

    return make


@pytest.fixture
def config(tmp_path):
    """Keyword arguments of a small accumulator."""
    return {
        "sync_every": 4,
        "max_scalars": 8,
        "max_histograms": 4,
        "device": "cpu",
        "flush_timeout": 10.0,
        "backlog_dir": tmp_path / "backlog",
    }


@pytest.fixture
def quick_retries(monkeypatch):
    """Retries follow at once: the tests wait for events, not for clocks."""
    from d9d_tracker.delivery import delivery

    for pause in ("_FIRST_RETRY_SECONDS", "_LAST_RETRY_SECONDS", "_CLOSING_RETRY_SECONDS"):
        monkeypatch.setattr(delivery, pause, 0.001)
