"""The examples run as they stand, and leave a run."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

from d9d_tracker import read

EXAMPLES = Path(__file__).parents[1] / "examples"
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def beside(monkeypatch):
    """Have them find each other, as scripts do that are run."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    yield
    sys.modules.pop("demo", None)


def load(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_example_has_a_test():
    assert {path.stem for path in EXAMPLES.glob("*.py")} == {
        "demo",  # commands/test_demo.py
        "lightning_digits",
        "transformers_digits",
        "plain_loop",
        "slow_step",
        "pictures",  # provider/test_pictures.py
    }


def test_lightning(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    load("lightning_digits").main("runs", epochs=2)
    (run,) = read("runs")
    assert len(run.scalars("loss").steps) == 2 * 12
    assert run.scalars("accuracy").values[-1] > 0.5
    assert {"logits", "gradients/layers.0.weight"} <= {series.name for series in run.series()}


def test_slow_step(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    load("slow_step").main("runs", steps=20)
    (run,) = read("runs")
    times = {name: run.scalars(f"time/{name}").values for name in ("step", "data", "forward", "backward", "optimizer")}
    assert {name: len(values) for name, values in times.items()} == {
        "step": 19,
        **dict.fromkeys(("forward", "backward", "optimizer"), 20),
        "data": 19,  # the first two waits are before step 1
    }
    assert min(times["data"][:9]) >= 0.1
    assert run.scalars("samples").values[-1] == 20 * 256
    blocks = times["forward"][:19] + times["backward"][:19] + times["optimizer"][:19] + [0, *times["data"][1:19]]
    assert (blocks <= times["step"]).all()


def test_transformers(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    load("transformers_digits").main("runs", epochs=2)
    (run,) = read("runs")
    assert run.scalars("own loss").steps.tolist() == list(range(1, 25))
    assert run.scalars("eval_loss").steps.tolist() == [12, 24]


def test_a_plain_loop_that_is_interrupted_goes_on(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plain = load("plain_loop")
    monkeypatch.setattr(plain, "SAVE_EVERY", 30)
    update = torch.optim.swa_utils.AveragedModel.update_parameters
    steps = 0

    def interrupted(*arguments):
        nonlocal steps
        steps += 1
        if steps == 75:
            raise KeyboardInterrupt
        update(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.swa_utils.AveragedModel, "update_parameters", interrupted)
        with pytest.raises(KeyboardInterrupt):
            plain.main("runs", steps=100)
    plain.main("runs", steps=100)
    plain.main("whole", steps=100)
    (run,), (whole,) = read("runs"), read("whole")
    for stage, points in {"train": 100, "eval": 2}.items():
        found, expected = (one.scalars("loss", {"stage": stage}) for one in (run, whole))
        assert found.steps.tolist() == expected.steps.tolist()
        assert found.values.tolist() == expected.values.tolist()
        assert len(found.steps) == points
    (gradients, expected) = (one.histograms("gradients/0.weight") for one in (run, whole))
    assert sum(one.count for one in gradients.values) == sum(one.count for one in expected.values)
