"""What this machine supports, and the proof on a small step that tracking costs no sync, break or recompile."""

import platform
import shutil
from importlib.metadata import PackageNotFoundError, version

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import nn

from d9d_tracker.accumulator import AccumulatingRun, AccumulatingTracker
from d9d_tracker.base import RunConfig
from d9d_tracker.check_step import StepReport, check_step
from d9d_tracker.config import AccumulatorConfig
from d9d_tracker.devices.devices import bank_of, device_of
from d9d_tracker.testing import RecordingTracker
from d9d_tracker_kernels.device import has_kernels

_NOT_INSTALLED = "not installed"
_VERDICTS = {True: Text("pass", "green"), False: Text("fail", "red"), None: ""}
_PACKAGES = ("d9d_tracker", "torch", "triton", "pydantic")
# By extra: what it installs, the first that is there.
EXTRAS = {
    "aim": ("aim",),
    "mlflow": ("mlflow", "mlflow-skinny"),
    "tensorboard": ("tensorboard",),
    "wandb": ("wandb",),
    "trackio": ("trackio",),
    "plot": ("matplotlib",),
    "pandas": ("pandas",),
    "system": ("psutil",),
    "demo": ("scikit-learn",),
}


def main() -> int:
    """Print one table: versions, what is there, and pass or fail by row; return 1 if one failed."""
    console = Console(markup=False)  # names and lines of code have brackets
    table = Table("", "found", "", title="d9d_tracker doctor")
    table.add_row("Python", platform.python_version())
    for name in _PACKAGES:
        table.add_row(name, _version(name))
    table.add_section()
    for extra, names in EXTRAS.items():
        found = [f"{name} {version}" for name in names if (version := _version(name)) != _NOT_INSTALLED]
        missing = f"{_NOT_INSTALLED}: pip install 'd9d_tracker[{extra}]'"
        table.add_row(f"extra {extra}", found[0] if found else missing)
    table.add_section()
    device = device_of("auto")
    table.add_row("device", torch.cuda.get_device_name() if device.type == "cuda" else str(device))
    table.add_row("bank", bank_of(device))
    compiler = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
    table.add_row("C++ compiler", compiler or "none: torch.compile cannot build for the CPU")
    passed = True
    if device.type not in ("cuda", "cpu"):
        table.add_row("a compiled step", f"not looked at: what compiled code does on {device.type} was never seen")
    elif has_kernels(device) or (compiler and device.type == "cpu"):
        table.add_section()
        for name, found, is_good in _rows(_check(device)):
            passed &= is_good is not False
            table.add_row(name, found, _VERDICTS[is_good])
    console.print(table)
    return 0 if passed else 1


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return _NOT_INSTALLED


def _check(device: torch.device) -> StepReport:
    tracker = AccumulatingTracker(RecordingTracker(), AccumulatorConfig(summary=False))
    model = nn.Sequential(nn.Linear(64, 128), nn.GELU(), nn.Linear(128, 10)).to(device)
    images, labels = torch.randn(32, 64, device=device), torch.randint(0, 10, (32,), device=device)
    with tracker.open(RunConfig(name="doctor")) as run:
        return check_step(_step, run, model, images, labels, run=run)


def _step(run: AccumulatingRun, model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    logits = model(images)
    loss = nn.functional.cross_entropy(logits, labels)
    run.scalars({"loss": loss, "accuracy": (logits.argmax(-1) == labels).float().mean()})
    run.bins("logits", logits)
    return loss


def _rows(report: StepReport) -> list[tuple[str, str, bool | None]]:
    skips = report.cuda_graph_skips
    captured, replayed = report.cuda_graphs or (0, 0)
    used = f"{captured} captured, replayed {replayed} times"
    graphs = "no CUDA device" if skips is None else "; ".join(skips) or used
    return [
        ("graphs of the step", str(report.graphs), report.graphs == 1),
        ("graph breaks", "; ".join(report.breaks) or "none", not report.breaks),
        ("recompiles over further steps", str(report.recompiles), report.recompiles == 0),
        ("host syncs", "; ".join(report.host_syncs) or "none", not report.host_syncs),
        ("CUDA graphs", graphs, None if skips is None else not skips),
        ("kernels added by tracking", f"{report.kernels_added} of {report.kernels}", None),
    ]
