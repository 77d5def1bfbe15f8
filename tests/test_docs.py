"""Every block of code in the README and in the docs runs as it stands there; every command is one that there is."""

import contextlib
import importlib.util
import re
import shlex
from pathlib import Path
from typing import NamedTuple

import pytest

from d9d_tracker import RunConfig, factory
from d9d_tracker.__main__ import _parser, main
from tests.run_files import read_run

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)

# What a reader of a page has at hand: a block alone begins with this.
BEGINS = {
    "docs/guide/compiled.md": """
        import torch
        from torch import nn
        from d9d_tracker import JsonlTrackerConfig, RunConfig, tracker_from_config
        tracker = tracker_from_config(JsonlTrackerConfig(path="runs"))
        weight, batch = torch.randn(8, 1, requires_grad=True), torch.randn(32, 8)
        run = tracker.start(RunConfig(name="x"))
        @torch.compile(fullgraph=True)
        def loss_of(weight, batch):
            loss = (batch @ weight).square().mean()
            run.scalar("loss", loss)
            return loss
        run.finish()
    """,
    "docs/guide/looking.md": """
        from d9d_tracker import JsonlTrackerConfig, tracker_from_config
        config = JsonlTrackerConfig(path="runs")
    """,
    "docs/guide/speed.md": """
        import torch
        from d9d_tracker import JsonlTrackerConfig, RunConfig, tracker_from_config
        run = tracker_from_config(JsonlTrackerConfig(path="runs")).start(RunConfig(name="x"))
        loader, parameters, loss_of = [torch.ones(4)] * 3, 1000, torch.sum
    """,
    "docs/guide/resuming.md": """
        import torch
        from d9d_tracker import JsonlTrackerConfig, RunConfig, tracker_from_config
        model, config = torch.nn.Linear(1, 1), JsonlTrackerConfig(path="runs")
        tracker = tracker_from_config(config)
        with tracker.open(RunConfig(name="first")) as run:
            run.scalar("loss", 1.0)
    """,
    "integrations.lightning": "from lightning.pytorch import Trainer",
    "integrations.transformers": """
        import torch
        from transformers import Trainer, TrainingArguments
        model, data = torch.nn.Linear(1, 1), []
        arguments = TrainingArguments(output_dir="out", report_to=[], use_cpu=True)
    """,
    "integrations.accelerate": "from accelerate import Accelerator",
    "integrations.torchtitan": """
        from types import SimpleNamespace
        from torchtitan.components.metrics import LoggerContainer, MetricsProcessor
        processor = object.__new__(MetricsProcessor)
        processor.logger = LoggerContainer()
        processor.config = MetricsProcessor.Config()
        processor.parallel_dims = SimpleNamespace(pp_enabled=False, pp=1, world_size=1)
        trainer = SimpleNamespace(metrics_processor=processor)
    """,
    "integrations.d9d": """
        from types import SimpleNamespace
        configurator = SimpleNamespace(configure=lambda: None)
    """,
}
# What a block needs that is not installed everywhere; its name is in the block.
NEEDS = (
    "lightning",
    "transformers",
    "accelerate",
    "torchtitan",
    "integrations.d9d",
    "aim",
    "wandb",
    "pandas",
    "tensorboard",
)


class Block(NamedTuple):
    page: str
    line: int
    language: str
    text: str


def blocks_of(page):
    text = page.read_text()
    return [
        Block(page.relative_to(ROOT).as_posix(), text.count("\n", 0, found.start()) + 2, found[1], found[2])
        for found in FENCE.finditer(text)
    ]


BLOCKS = [block for page in PAGES for block in blocks_of(page)]
PROGRAMS = [block for block in BLOCKS if block.language == "python"]
COMMANDS = [
    (f"{block.page}:{block.line}", line)
    for block in BLOCKS
    if not block.language and "──" not in block.text  # which is a drawing
    for line in block.text.splitlines()
]


def run(block, names):
    """Run a block, so that an error names its page and line."""
    missing = [name for name in NEEDS if re.search(rf"\b{name}\b", block.text) and not is_there(name)]
    if missing:
        pytest.skip(f"{block.page}:{block.line} needs {', '.join(missing)}, which is not installed: pip install it")
    exec(compile("\n" * (block.line - 1) + block.text, str(ROOT / block.page), "exec"), names)


def is_there(name):
    return importlib.util.find_spec(name.rpartition(".")[2]) is not None


def begin(key, names):
    lines = BEGINS.get(key, "").strip("\n").splitlines()
    indent = len(lines[0]) - len(lines[0].lstrip()) if lines else 0
    exec("\n".join(line[indent:] for line in lines), names)


@pytest.fixture
def names(tmp_path, monkeypatch):
    """Return an empty namespace, in a folder of its own, without accounts, which leaves nothing behind."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    monkeypatch.setenv("WANDB_SILENT", "true")
    known = dict(factory._MAP)
    yield {"__name__": "docs"}
    factory._MAP.clear()
    factory._MAP.update(known)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("page", ["README.md", "docs/index.md", "docs/start.md"])
def test_the_blocks_of_a_page_are_a_program(page, names, tmp_path, capsys):
    for block in PROGRAMS:
        if block.page == page:
            run(block, names)
    for place, line in COMMANDS:
        if place.startswith(page) and (words := shlex.split(line, comments=True))[:3] == [
            "python",
            "-m",
            "d9d_tracker",
        ]:
            assert main(words[3:]) == 0, capsys.readouterr().err
    for path in tmp_path.glob("*runs/*.jsonl"):
        assert read_run(path)[1], "a run of a page has points"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "block",
    [block for block in PROGRAMS if block.page not in ("README.md", "docs/index.md", "docs/start.md")],
    ids=lambda block: f"{block.page}:{block.line}",
)
def test_a_block_of_the_guide_runs(block, names, tmp_path):
    begin(block.page, names)
    for key in BEGINS:
        if key in block.text:
            missing = not is_there(key)
            if missing:
                pytest.skip(f"{block.page}:{block.line} needs {key.rpartition('.')[2]}: pip install it")
            from d9d_tracker import JsonlTrackerConfig

            names["config"] = JsonlTrackerConfig(path=tmp_path / "runs")
            begin(key, names)
    run(block, names)
    CHECKS.get(block.page, lambda names: None)(names)


def uses_the_backend(names):
    tracker = factory.tracker_from_config(names["PrintTrackerConfig"](prefix=">"))
    with tracker.open(RunConfig(name="printed")) as run, contextlib.redirect_stdout(None):
        run.scalar("loss", 0.5, {"stage": "train"})
    assert f'"run_id":"{tracker.run_id}"' in tracker.state_dict()["backend"]


def ends_accelerate(names):
    if "accelerator" in names:
        from accelerate.state import AcceleratorState, PartialState

        names["accelerator"].init_trackers("project")
        names["accelerator"].log({"loss": 1.0}, step=0)
        names["accelerator"].end_training()
        AcceleratorState._reset_state(reset_partial_state=True)
        PartialState._reset_state()


def has_measured(names):
    names["run"].finish()
    (path,) = Path("runs").glob("*.jsonl")
    found = {record.name for record in read_run(path)[1]}
    assert found >= {"time/step", "time/data", "time/forward", "tokens", "tokens/s", "mfu"}


CHECKS = {
    "docs/guide/backend.md": uses_the_backend,
    "docs/guide/frameworks.md": ends_accelerate,
    "docs/guide/speed.md": has_measured,
}


@pytest.mark.parametrize(("place", "line"), COMMANDS, ids=lambda value: value[:60])
def test_a_command_is_one_that_there_is(place, line, capsys):
    words = shlex.split(line, comments=True)
    if words[:3] == ["python", "-m", "d9d_tracker"]:
        _parser().parse_args(words[3:])
    elif words[:2] == ["pip", "install"]:
        extras = re.search(r"\[(.*)\]", line)
        known = (ROOT / "pyproject.toml").read_text()
        assert all(f"\n{extra} = [" in known for extra in (extras[1].split(",") if extras else []))
    elif words[0] == "make":
        assert f"\n{words[1]}:" in (ROOT / "Makefile").read_text()
    else:
        assert line.split()[0] in ("python", "wandb"), f"{place}: {line!r} is checked by nobody"


def test_what_goes_wrong_is_told(names, capsys):
    (block,) = [block for block in PROGRAMS if "on_nonfinite" in block.text]
    begin(block.page, names)
    run(block, names)
    with names["tracker"].open(RunConfig(name="x")) as opened:
        opened.scalar("loss", float("nan"))
    assert capsys.readouterr().out == "loss: nan at step 0\n"


def test_the_numbers_of_the_first_page(names, tmp_path):
    run(PROGRAMS[0], names)
    (path,) = (tmp_path / "runs").glob("*.jsonl")
    properties, records = read_run(path)
    assert properties["hparams"] == {"lr": 0.1}
    assert [record.step for record in records if record.name == "loss"] == list(range(100))
    assert sum(record.value.count for record in records if record.name == "batch") == 100 * 32 * 8


def test_a_run_that_was_saved_and_is_still_open_is_refused(names):
    """As the page about resuming says."""
    begin("docs/guide/resuming.md", names)
    with names["tracker"].open(RunConfig(name="first")):
        other = factory.tracker_from_config(names["config"])
        other.load_state_dict(names["tracker"].state_dict())
        with (
            pytest.raises(RuntimeError, match="close the run if it is one of this process"),
            other.open(RunConfig(name="x")),
        ):
            pass


def test_the_architecture_names_files_that_there_are():
    files = {path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*.py") if ".venv" not in path.parts}
    named = re.findall(r"`([\w/]+\.py)`", (ROOT / "docs/architecture.md").read_text())
    assert len(named) > 40
    assert [name for name in named if not any(f"/{file}".endswith(f"/{name}") for file in files)] == []
