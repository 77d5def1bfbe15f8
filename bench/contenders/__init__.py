"""Who takes part: what is installed, and what is not."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from .base import EVERY, Contender, Kind, Nothing
from .by_hand import D9dWriter, ItemEveryStep, StackEveryN
from .ours import BACKENDS, ELSEWHERE, PLACES, Ours, configure
from .packages import D9dPackage, Lightning, MeanMetrics, TensorBoard, Wandb

__all__ = [
    "BACKENDS",
    "ELSEWHERE",
    "EVERY",
    "PLACES",
    "Contender",
    "Kind",
    "Nothing",
    "Ours",
    "Start",
    "configure",
    "others",
    "ours",
    "start",
]

Start = Callable[[], Contender]


def others(folder: Path, device: str) -> dict[str, Start]:
    """Everything that is not ours, by name; nothing is imported yet."""
    return {
        ItemEveryStep.name: ItemEveryStep,
        StackEveryN.name: StackEveryN,
        D9dWriter.name: D9dWriter,
        D9dPackage.name: D9dPackage,
        MeanMetrics.name: lambda: MeanMetrics(device),
        Lightning.name: lambda: Lightning(folder / "lightning"),
        TensorBoard.name: lambda: TensorBoard(folder / "tensorboard"),
        Wandb.name: lambda: Wandb(folder / "wandb"),
    }


def ours(
    folder: Path, device: str, backends: tuple[str, ...] = BACKENDS, elsewhere: Iterable[str] = ()
) -> dict[str, Start]:
    """d9d_tracker with each of some backends, by name; and with some where they are not by default."""
    wanted: dict[str, Start] = {
        f"d9d_tracker → {backend}": lambda backend=backend: Ours(configure(backend, folder / f"ours-{backend}", device))
        for backend in backends
    }
    for backend in elsewhere:
        name = f"d9d_tracker → {backend}, {PLACES[ELSEWHERE[backend]]}"
        place = folder / f"ours-{backend}-{ELSEWHERE[backend]}"
        wanted[name] = lambda backend=backend, place=place, name=name: Ours(
            configure(backend, place, device, writer=ELSEWHERE[backend]), name
        )
    return wanted


@contextmanager
def start(wanted: Mapping[str, Start]) -> Iterator[tuple[list[Contender], dict[str, str]]]:
    """Start contenders and close them again.

    Args:
        wanted: How to start each, by name.

    Yields:
        Those that started, and why the others did not, by name.
    """
    started: list[Contender] = []
    missing: dict[str, str] = {}
    for name, begin in wanted.items():
        try:
            started.append(begin())
        except ImportError as error:
            missing[name] = f"not installed ({error.name or error})"
        except Exception as error:  # a package that cannot start here must not end the benchmark
            missing[name] = f"does not start here: {str(error).splitlines()[0]}"
    try:
        yield started, missing
    finally:
        for contender in reversed(started):
            contender.close()
