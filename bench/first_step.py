"""What a hundred scalars add to the first step: to compile it, beside the same step that returns the values.

    PYTHONPATH=.:kernels python -m bench.first_step [--turns 5] [--backend inductor|aot_eager]

Processor time of the first forward and backward, that of the compiler's own processes included. Each is measured in a
process of its own, with no cache of compiled code, after a smaller function that logs was compiled. They take turns.
"""

import argparse
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from d9d_tracker import AccumulatorConfig, NullTrackerConfig, RunConfig, tracker_from_config

_SCALARS = 100
_Values = Iterator[torch.Tensor]


def _elements() -> Callable[[torch.Tensor], _Values]:
    model = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.GELU(), torch.nn.Linear(128, _SCALARS))
    return lambda x: iter(model(x).mean(0).unbind())


def _apart() -> Callable[[torch.Tensor], _Values]:
    model = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.GELU(), torch.nn.Linear(128, _SCALARS))

    def values(x: torch.Tensor) -> _Values:
        hidden = model(x)
        yield from [hidden[:, index].square().mean() for index in range(_SCALARS)]

    return values


def _between() -> Callable[[torch.Tensor], _Values]:
    layers = torch.nn.ModuleList(torch.nn.Linear(64, 64) for _ in range(_SCALARS // 5))

    def values(x: torch.Tensor) -> _Values:
        for layer in layers:
            x = torch.tanh(layer(x))
            yield from (x.mean(), x.abs().max(), x.square().mean(), x.min(), (x * 2).sum())

    return values


STEPS = {
    "the elements of a vector": _elements,
    "numbers, each computed apart": _apart,
    "five numbers between each two layers": _between,
}


def measure(kind: str, is_logged: bool, backend: str) -> float:
    """Return the seconds of processor time that the first step of a process takes."""
    torch.set_num_threads(1)
    x, values = torch.randn(32, 64), STEPS[kind]()
    with tracker_from_config(NullTrackerConfig(accumulator=AccumulatorConfig(device="cpu"))).open(
        RunConfig(name="first step")
    ) as run:

        def smaller(x: torch.Tensor) -> None:
            run.scalar("smaller", (x * 2).sum())

        def step(x: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
            loss, returned = torch.zeros(()), []
            for index, value in enumerate(values(x)):
                loss = loss + value if index % 10 == 0 else loss
                if is_logged:
                    run.scalar(f"value/{index}", value)
                else:
                    returned.append(value.detach())
            return loss, returned

        torch.compile(smaller, backend=backend, fullgraph=True)(x)
        before = os.times()
        torch.compile(step, backend=backend, fullgraph=True)(x)[0].backward()
        return sum(os.times()[:4]) - sum(before[:4])


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--backend", default="inductor", choices=("inductor", "aot_eager"))
    parser.add_argument("--in-here", nargs=2, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.in_here:
        print(measure(chosen.in_here[0], chosen.in_here[1] == "logged", chosen.backend))
        return
    table = Table("100 values", "returned, s", "logged, s", "ratio", title=f"The first step, {chosen.backend}")
    for kind in STEPS:
        returned, logged = [], []
        for _ in track(range(chosen.turns), kind, transient=True):
            for how, seconds in (("returned", returned), ("logged", logged)):
                command = [sys.executable, "-m", "bench.first_step", "--backend", chosen.backend]
                command += ["--in-here", kind, how]
                environment = {**os.environ, "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1", "OMP_NUM_THREADS": "1"}
                output = subprocess.run(command, env=environment, capture_output=True, check=True, text=True).stdout
                seconds.append(float(output.split()[-1]))
        medians = statistics.median(returned), statistics.median(logged)
        ratio = statistics.median(one / other for one, other in zip(logged, returned, strict=True))
        table.add_row(kind, f"{medians[0]:.1f}", f"{medians[1]:.1f}", f"{ratio:.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()
