"""The code of the README and of the guide runs as it stands there."""

import importlib.util
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from d9d_tracker import JsonlTrackerConfig, RunConfig, factory, tracker_from_config
from d9d_tracker.__main__ import main
from d9d_tracker.provider.jsonl import read_run

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs" / "guide").glob("*.md"))]


def block(containing: str) -> str:
    blocks = [text for page in PAGES for text in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)]
    (found,) = [text for text in blocks if containing in text]
    return found


@pytest.fixture
def in_tmp_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_ten_lines(in_tmp_path):
    exec(block("@torch.compile"), {})
    (path,) = (in_tmp_path / "runs").glob("*.jsonl")
    run, records = read_run(path)
    assert run["hparams"] == {"lr": 0.1}
    assert [record.step for record in records if record.name == "loss"] == list(range(100))
    assert sum(record.value.count for record in records if record.name == "batch") == 100 * 32 * 8


def test_its_step_is_clean(in_tmp_path):
    namespace = {}
    exec(block("@torch.compile"), namespace)
    exec(block("check_step"), namespace | {"batch": namespace["torch"].randn(32, 8)})


def test_a_backend_is_chosen_from_data(in_tmp_path):
    namespace = {}
    exec(block("TypeAdapter"), namespace)
    with namespace["tracker"].open(RunConfig(name="from data")) as run:
        run.scalar("loss", 1.0)


def test_adding_a_backend(in_tmp_path, capsys):
    namespace = {}
    try:
        exec(block("PrintTrackerConfig"), namespace)
        tracker = tracker_from_config(namespace["PrintTrackerConfig"](prefix=">"))
        with tracker.open(RunConfig(name="printed")) as run:
            run.set_step(3)
            run.scalar("loss", 0.5, {"stage": "train"})
            run.bins("values", torch.arange(5.0))
    finally:
        factory._MAP.pop(namespace.get("PrintTrackerConfig"), None)
    printed = capsys.readouterr().out
    assert "> 3 loss 0.5 {'stage': 'train'}" in printed
    assert "> 3 values Histogram(" in printed
    assert re.fullmatch("[0-9a-f]{32}", str(tracker.run_id))
    assert f'"run_id":"{tracker.run_id}"' in tracker.state_dict()["backend"]


@pytest.mark.filterwarnings("ignore")
def test_the_lines_for_frameworks(in_tmp_path):
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, PartialState
    from lightning.pytorch import Trainer as LightningTrainer
    from transformers import Trainer, TrainingArguments

    config = JsonlTrackerConfig(path=in_tmp_path / "runs")
    exec(block("TrackerLogger"), {"Trainer": LightningTrainer, "config": config})
    arguments = TrainingArguments(output_dir="out", report_to=[], use_cpu=True)
    names = {"Trainer": Trainer, "model": torch.nn.Linear(1, 1), "arguments": arguments, "data": [], "config": config}
    exec(block("integrations.transformers"), names)
    names = {"Accelerator": Accelerator, "config": config}
    exec(block("AccelerateTracker"), names)
    names["accelerator"].init_trackers("project")
    names["accelerator"].log({"loss": 1.0}, step=0)
    names["accelerator"].end_training()
    AcceleratorState._reset_state(reset_partial_state=True)
    PartialState._reset_state()
    (path,) = (in_tmp_path / "runs").glob("*.jsonl")
    assert read_run(path)[0]["name"] == "first"


@pytest.mark.skipif(
    not importlib.util.find_spec("d9d"), reason="d9d is not installed; it asks for torch 2.14: pip install d9d"
)
def test_the_line_for_d9d(in_tmp_path):
    names = {"config": JsonlTrackerConfig(path=in_tmp_path / "runs"), "configurator": SimpleNamespace(configure=list)}
    exec(block("plug_in"), names)


def test_what_goes_wrong_is_told(in_tmp_path, capsys):
    config = JsonlTrackerConfig(path=in_tmp_path / "runs")
    namespace = {"config": config, "tracker_from_config": tracker_from_config}
    exec(block("on_nonfinite"), namespace)
    with namespace["tracker"].open(RunConfig(name="x")) as run:
        run.scalar("loss", float("nan"))
    assert capsys.readouterr().out == "loss: nan at step 0\n"


def test_the_start_page_leads_to_a_chart(in_tmp_path):
    (program,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "index.md").read_text(), re.DOTALL)
    exec(program, {})
    assert main(["show", "first_runs"]) == 0
    assert main(["plot", "first_runs", "--out", "first.png"]) == 0
    assert (in_tmp_path / "first.png").stat().st_size > 10_000
