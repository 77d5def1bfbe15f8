"""(n) The norms of all gradients and parameters of a GPT at every step, timed; `--count` counts instructions instead.

    PYTHONPATH=.:kernels python -m bench.norms --count nothing,norms,composer

Valgrind counts those of an eager step on one thread, without those of the writing in the background.
"""

import argparse
import copy
import ctypes
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import nn

from .contenders import Contender, Nothing, Ours, Start, configure, others, start
from .contenders.base import Kind
from .interleave import synchronize
from .models import Batch, Gpt
from .pairs import take_turns
from .plan import Plan, count_parameters, subject
from .report import Result, Row
from .training import Training, forward_of
from .valgrind import ENVIRONMENT, prepare, under_valgrind

_EVERY = 8
_COUNTED = 2
_READS = 15


class Norms(Ours):
    """``run.watch(model, norms=True)``."""

    inside = False

    def watch(self, model: nn.Module) -> None:
        self._watch = self.run.watch(model, gradients=False, norms=True, every=1)

    def scalars(self, values: Mapping[str, torch.Tensor]) -> None:
        pass


class ByHand(Contender):
    """As Composer's OptimizerMonitor: a norm of each tensor, and a number on the host of each, at every step."""

    name = "each norm, each .item()"
    kind: Kind = "by hand"

    def __init__(self) -> None:
        self.found: list[dict[str, float]] = []

    def gradients(self, model: nn.Module) -> None:
        norms: dict[str, torch.Tensor] = {}
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None
            norms[f"l2_norm/param/{name}"] = torch.linalg.vector_norm(parameter.detach())
            norms[f"l2_norm/grad/{name}"] = torch.linalg.vector_norm(parameter.grad)
        numbers = {name: norm.item() for name, norm in norms.items()}
        total = sum(number**2 for name, number in numbers.items() if "/grad/" in name) ** 0.5
        self.found.append(numbers | {"l2_norm/grad/global": total})

    def settle(self) -> None:
        self.found.clear()


def run(plan: Plan) -> Result:
    """Measure what the norms of all parameters and gradients add to steps of few and of many tokens."""
    model, size, length = _model(plan.device, plan.quick)
    tensors = len(list(model.parameters()))
    result = Result(
        "n",
        f"Norms of the gradients and parameters of a GPT of {count_parameters(model) / 1e6:.0f}M parameters, "
        f"{tensors} tensors, at every step",
        {"vs untracked": ".3f", "added ms a step": ",.2f", "vs untracked, all written": ".3f"},
        remarks=["wandb.watch has no norms: it logs a histogram of every gradient."],
    )
    for times in (1, 4):
        batch = model.batch(plan.device, times * size, length)
        _beside_each_other(plan, model, batch, f"{times * size * length:,}", _EVERY // times, result)
    return result


def _beside_each_other(plan: Plan, model: Gpt, batch: Batch, tokens: str, every: int, result: Result) -> None:
    wanted: dict[str, Start] = {Nothing.name: Nothing, ByHand.name: ByHand}
    wanted |= {name: make for name, make in others(plan.folder, plan.device).items() if name == "wandb.log (offline)"}
    for backend in ("null", "jsonl"):
        folder = plan.folder / f"{tokens} tokens"
        wanted[f"d9d_tracker → {backend}"] = lambda backend=backend, folder=folder: _ours(folder, plan.device, backend)
    with start(wanted) as (contenders, missing):
        trainings = []
        for contender in (*contenders, Nothing()):
            own = copy.deepcopy(model)  # because watching leaves hooks on it
            forward = forward_of(own, Contender(), backend=plan.backend, bfloat16=plan.device == "cuda")
            trainings.append(Training(contender, own, batch, forward, gradients=contender.tracks))
        names = [contender.name for contender in contenders]  # before W&B's says that it watches
        found = take_turns(
            {training.contender.name: subject(training, every) for training in trainings[:-1]},
            subject(trainings[-1], every),
            turns=2 if plan.quick else 8,
            windows=1,
            device=plan.device,
        )
        group = f"{tokens} tokens a step"
        for contender, name in zip(contenders, names, strict=True):
            pairs = found[name]
            cells = {
                "vs untracked": pairs.ratio(),
                "added ms a step": pairs.added().scaled(1e3),
                "vs untracked, all written": pairs.ratio(settled=True),
            }
            result.rows.append(Row(contender.name, contender.kind, dict(cells), contender.note, group))
    result.missing |= missing
    share = _seconds_of_a_read(model, plan.device) / np.median(found[Nothing.name].neighbour)
    result.remarks.append(
        f"With {tokens} tokens, to do nothing but read all gradients and parameters once (a sum of each) takes "
        f"{share:.3f} of the untracked step."
    )


def _seconds_of_a_read(model: nn.Module, device: str) -> float:
    tensors = [copy for one in model.parameters() for copy in (one.detach(), torch.randn_like(one))]
    times = []
    for _ in range(_READS):
        synchronize(device)
        began = time.perf_counter()
        for tensor in tensors:
            tensor.sum()
        synchronize(device)
        times.append(time.perf_counter() - began)
    return float(np.median(times))


def _model(device: str, quick: bool) -> tuple[Gpt, int, int]:
    model = Gpt(64, 32, 5, 2, 16) if quick else Gpt(3072, 384, 5, 6, 128)
    return model.to(device), 2, 16 if quick else 128


def _ours(folder: Path, device: str, backend: str) -> Norms:
    return Norms(configure(backend, folder / f"norms-{backend}", device), f"d9d_tracker → {backend}")


def count(name: str, folder: Path) -> None:
    """Train in this process, under Valgrind.

    Args:
        name: ``nothing``, ``norms`` or ``composer``.
        folder: Has the switch.
    """
    torch.set_num_threads(1)
    switch = ctypes.CDLL(str(folder / "switch.so"))
    model, size, length = _model("cpu", quick=False)
    contender = {"nothing": Nothing, "composer": ByHand, "norms": lambda: _ours(folder, "cpu", "null")}[name]()
    forward = forward_of(model, Contender(), backend=None)
    training = Training(contender, model, model.batch("cpu", size, length), forward, gradients=contender.tracks)
    training.before()
    training.run(2)
    switch.begin()
    training.run(_COUNTED)
    switch.end()
    contender.close()


def _counted(name: str) -> float:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        prepare(folder)
        command = [*under_valgrind(folder), sys.executable, "-m", "bench.norms", "--in-here", name, str(folder)]
        subprocess.run(command, env=ENVIRONMENT, capture_output=True, check=True)
        totals = [re.search(r"^totals: (\d+)", path.read_text(), re.MULTILINE) for path in folder.glob("counts*-01")]
        return sum(int(one[1]) for one in totals if one) / _COUNTED


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", default="nothing,norms,composer", help="whose instructions")
    parser.add_argument("--in-here", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.in_here:
        count(arguments.in_here[0], Path(arguments.in_here[1]))
        return
    found = {name: _counted(name) for name in arguments.count.split(",")}
    for name, instructions in found.items():
        more = f", {instructions / found['nothing']:.4f} of the untracked step" if "nothing" in found else ""
        print(f"{name}: {instructions / 1e6:,.1f} million instructions a step{more}")


if __name__ == "__main__":
    main()
