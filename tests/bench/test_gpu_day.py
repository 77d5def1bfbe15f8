"""The GPU day resumes, is bounded, and its host code runs without a GPU, so that no GPU hour goes to typos."""

import json

import pytest
import torch

from bench import gpu_day, histogram_gpu
from bench.gpu_day import PARTS, Part, is_done, run_part


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


def test_a_part_that_lacks_something_is_left_out_by_name(tmp_path):
    result = run_part(Part("x", ("-c", "1"), ("no_such_module",)), tmp_path)
    assert (result["status"], result["output"]) == ("left out", "not installed: no_such_module")


def test_the_day_goes_on_after_a_failure_and_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gpu_day, "PARTS", (Part("bad", ("-c", "exit(1)")), Part("good", ("-c", "print('fine')"))))
    assert gpu_day.main(["--out", str(tmp_path)]) == 1
    assert "fine" in capsys.readouterr().out
    assert gpu_day.main(["--out", str(tmp_path), "--list"]) == 0
    assert "good         has passed before" in capsys.readouterr().out


def test_every_part_can_be_asked_for(monkeypatch):
    for part in PARTS:
        if "pytest" in part.arguments:
            assert all((gpu_day.ROOT / name).exists() for name in part.arguments if name.startswith("tests/"))
    assert {part.arguments[-1] for part in PARTS if part.name.startswith("bench-")} == set("abcdef") | {"counts"}


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
