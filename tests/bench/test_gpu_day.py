"""The GPU day resumes, is bounded, and its host code runs without a GPU, so that no GPU hour goes to typos."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.profiler import ProfilerActivity

from bench import __main__ as command
from bench import counts, gpu_day, histogram_gpu
from bench.gpu_day import PARTS, Part, is_done, run_part
from bench.plan import Plan


def test_a_part_leaves_what_ran_and_is_not_run_again(tmp_path):
    part = Part("hello", ("-c", "print('it ran')"))
    result = run_part(part, tmp_path)
    stored = json.loads((tmp_path / "hello.json").read_text())
    assert stored == result
    assert (stored["status"], stored["output"]) == ("passed", "it ran\n")
    assert stored["versions"]["torch"] == torch.__version__
    assert is_done(part, tmp_path)
    stored["commit"] = "another"
    (tmp_path / "hello.json").write_text(json.dumps(stored))
    assert not is_done(part, tmp_path)


def test_a_part_that_fails_or_hangs_is_told(tmp_path):
    failing, hanging = Part("f", ("-c", "print(1); exit(3)")), Part("h", ("-uc", "print(2)\nwhile True: pass"))
    assert run_part(failing, tmp_path)["status"] == "failed with status 3"
    result = run_part(hanging, tmp_path, seconds=2)
    assert result["status"] == "stopped after 2 s"
    assert result["output"].startswith("2")
    assert not is_done(failing, tmp_path)


def test_a_part_that_lacks_something_fails_by_name(tmp_path):
    result = run_part(Part("x", ("-c", "1"), ("no_such_module",)), tmp_path)
    assert (result["status"], result["output"]) == ("failed", "not installed: no_such_module; see make gpu-wheels")


def test_tests_that_are_all_skipped_are_no_pass(tmp_path):
    (tmp_path / "test_skipped.py").write_text("import pytest\ndef test():\n    pytest.skip('no GPU')\n")
    command = ("-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path / "test_skipped.py"))
    assert run_part(Part("s", command), tmp_path)["status"] == "failed: nothing ran"


def test_results_of_a_part_go_to_its_own_folder(tmp_path):
    result = run_part(Part("bench-a", ("-c", "import sys; print(sys.argv[1])", "{out}")), tmp_path)
    assert result["output"] == f"{tmp_path / 'bench-a'}\n"


def test_without_a_gpu_it_fails(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu_day.main(["--out", str(tmp_path)]) == 2
    assert "no GPU" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


@pytest.fixture
def a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "no GPU")


def test_the_day_goes_on_after_a_failure_and_says_so(tmp_path, monkeypatch, capsys, a_gpu):
    monkeypatch.setattr(gpu_day, "PARTS", (Part("bad", ("-c", "exit(1)")), Part("good", ("-c", "print('fine')"))))
    assert gpu_day.main(["--out", str(tmp_path)]) == 1
    assert "fine" in capsys.readouterr().out
    assert gpu_day.main(["--out", str(tmp_path), "--list"]) == 0
    assert "good                   has passed before" in capsys.readouterr().out


def test_a_budget_ends_it_before_a_part_that_may_not_fit_and_the_next_call_goes_on(tmp_path, monkeypatch, a_gpu):
    monkeypatch.setattr(gpu_day, "PARTS", (Part("one", ("-c", "1")), Part("two", ("-c", "1"))))
    assert gpu_day.main(["--out", str(tmp_path), "--seconds", "1"]) == 3
    assert gpu_day.main(["--out", str(tmp_path), "--only", "one"]) == 0
    monkeypatch.setattr(gpu_day, "LONGEST_SECONDS", 0)
    assert gpu_day.main(["--out", str(tmp_path), "--seconds", "60"]) == 0
    assert {path.stem for path in tmp_path.glob("*.json")} == {"one", "two"}


def test_every_part_can_be_asked_for_is_short_and_the_riskiest_is_first():
    assert PARTS[0].name == "graphs-by-hand"
    assert gpu_day.LONGEST_SECONDS < 240
    for part in PARTS:
        if "pytest" in part.arguments:
            assert all((gpu_day.ROOT / name).exists() for name in part.arguments if name.startswith("tests/"))
    asked = {part.arguments[4] for part in PARTS if part.name.startswith("bench-")}
    assert asked == set("abcdefgnp") | {"counts"}


@pytest.fixture
def without_gpu(monkeypatch):
    """The CPU in the place of the GPU, small tensors, and a clock that calls what it is to time once."""
    called = []

    def once(function, rounds=20):
        called.append(function())
        return 1.0

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "no GPU")
    monkeypatch.setattr(histogram_gpu, "milliseconds", once)
    monkeypatch.setattr(histogram_gpu, "DEVICE", "cpu")
    monkeypatch.setattr(histogram_gpu, "SIZES", {"1K": 1 << 10, "2K": 1 << 11})
    monkeypatch.setattr(histogram_gpu, "GPT2_SHAPES", [(16, 8), (8,)])
    return called


def test_the_histograms_host_code_runs(without_gpu, tmp_path, capsys):
    histogram_gpu.main(["--out", str(tmp_path)])
    (result,) = (json.loads(path.read_text()) for path in tmp_path.glob("*.json"))
    assert len(result["points"]) == 2 * 2 * 4
    assert "histogram_many_" in capsys.readouterr().out
    assert len(without_gpu) > 30
    assert list(tmp_path.glob("*.png"))


class OnTheCpu(str):
    """A device that calls itself CUDA to the benchmark, and the CPU to torch."""

    __hash__ = str.__hash__

    def __eq__(self, other):
        return other == "cuda" if isinstance(other, str) else NotImplemented


class Profiled:
    """Stands for torch's profiler: has seen two kernels and a copy."""

    def __init__(self, activities):
        assert ProfilerActivity.CUDA in activities

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def export_chrome_trace(self, path):
        copy = {"cat": "gpu_memcpy", "name": "Memcpy DtoH (Device -> Pinned)", "args": {"bytes": 64}}
        Path(path).write_text(json.dumps({"traceEvents": [{"cat": "kernel"}, {"cat": "kernel"}, copy]}))


def test_the_benchmarks_host_code_runs(monkeypatch, tmp_path, capsys):
    pytest.importorskip("matplotlib", reason="pip install matplotlib")
    waits, modes = [], []
    there = SimpleNamespace(is_available=lambda: True)
    leave = dict.fromkeys(("set_float32_matmul_precision", "manual_seed", "set_num_threads"), lambda _: None)
    monkeypatch.setattr(command, "torch", SimpleNamespace(cuda=there, **leave))
    monkeypatch.setattr(command, "_quiet", lambda: None)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "no GPU")
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: waits.append(1))
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
    monkeypatch.setattr(counts, "profile", Profiled)
    monkeypatch.setattr(counts, "others", lambda *_: {})  # which run on the CPU alike
    monkeypatch.setattr(command, "Plan", lambda _, quick, folder: Plan(OnTheCpu("cpu"), quick, folder))
    monkeypatch.setattr(sys, "argv", ["bench", "--gpu", "--quick", "--only", "c,counts", "--out", str(tmp_path)])
    assert command.main() == 0
    (result,) = (json.loads(path.read_text()) for path in tmp_path.glob("*.json"))
    assert result["device"] == "no GPU"
    found = {result["key"]: result for result in result["results"]}
    assert {"kernels", "kernels (h)"} <= set(found["counts"]["columns"])
    ours = [row for row in found["counts"]["rows"] if row["kind"] == "ours"]
    assert ours
    assert all(row["cells"]["kernels"] == 0 for row in ours), "as many as the untracked step"
    assert any("half precision" in remark for remark in found["c"]["remarks"])
    assert waits
    assert modes[:2] == ["warn", "default"]
    assert "no-gpu" in capsys.readouterr().out
