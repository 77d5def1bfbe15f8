"""The demo under torchrun: one run, whose curves are those of all ranks' values."""

import json
from collections import defaultdict
from pathlib import Path

from d9d_tracker.record import Histogram
from tests import scripts
from tests.run_files import read_run

RANKS, STEPS = 2, 55


def test_the_demo_under_torchrun(tmp_path):
    done = scripts.run_ranks(Path(__file__).with_name("demo_with_notes.py"), RANKS, tmp_path, str(tmp_path), str(STEPS))
    output = done.stdout + done.stderr
    assert done.returncode == 0, output
    assert output.count("digits  ") == 1

    noted = defaultdict(list)
    for rank in range(RANKS):
        for name, stage, step, value in json.loads((tmp_path / f"notes-{rank}.json").read_text()):
            noted[name, stage, step].append(value)
    (path,) = (tmp_path / "runs").glob("*.jsonl")
    _, records = read_run(path)
    found = {(r.name, r.context["stage"], r.step): r.value for r in records if r.name in ("loss", "accuracy")}
    assert len(found) == 2 * (STEPS + 2)
    for key, value in found.items():
        assert len(noted[key]) == RANKS
        assert value == sum(noted[key]) / RANKS  # losses are float32: their float64 sum is exact

    elements = {"gradients/head.weight": 1280, "gradients/layers.0.weight": 64 * 128}
    for name, count in elements.items():  # the same on every rank, counted once
        assert sum(r.value.count for r in records if r.name == name) == STEPS * count
    activations = [r.value.count for r in records if r.name == "activations/0" and r.context["stage"] == "train"]
    assert sum(activations) == RANKS * STEPS * 128 * 128
    assert all(isinstance(r.value, Histogram) for r in records if r.name.startswith(("gradients/", "activations/")))
