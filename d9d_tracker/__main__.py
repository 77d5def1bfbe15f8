"""Track compiled PyTorch training loops: look at runs, carry them elsewhere, try the library out."""

import argparse
import io
import sys
from pathlib import Path

from rich.console import Console

from d9d_tracker.commands.plot import plot
from d9d_tracker.commands.show import show

# The other commands are imported when they run: they need torch, which takes longer to import than a run to be shown.

_DEMOS = ("aim", "console", "jsonl", "mlflow", "tensorboard", "trackio", "wandb")


def main(arguments: list[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: Arguments of the command line, without the program; those of the process by default.

    Returns:
        The exit status: 1 if the command failed, which it then says in one line.
    """
    chosen = _parser().parse_args(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # of names that the terminal has no letters for
    try:
        return chosen.run(chosen)
    except (ImportError, OSError, ValueError) as error:
        Console(stderr=True).print(
            f"{chosen.command}: {error}", style="red", markup=False, highlight=False, soft_wrap=True
        )
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m d9d_tracker", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    one = commands.add_parser("show", help="runs in JSON files: a table of them, or of one's series and their trend")
    one.add_argument("path", type=Path, help="file of a run, or folder of runs")
    several = "which series, such as 'train/*'; may be repeated"
    one.add_argument(
        "--series", metavar="GLOB", action="append", default=[], help=f"{several} (default: all, if there is one run)"
    )
    one.add_argument("--follow", action="store_true", help="go on while the runs are written; ends with Ctrl-C")
    one.set_defaults(run=_show)

    one = commands.add_parser("plot", help="one picture of runs in JSON files: curves, quantile bands, heat maps")
    one.add_argument("paths", type=Path, nargs="+", metavar="PATH", help="files of runs, or folders of runs")
    one.add_argument("--series", metavar="GLOB", action="append", default=[], help=f"{several} (default: all)")
    one.add_argument("--out", type=Path, default=Path("plot.png"), help="png, svg or pdf (default: plot.png)")
    one.add_argument("--steps", type=_span, metavar="FROM:TO", help="zoom: only these steps")
    one.add_argument(
        "--clip",
        type=_percentage,
        default=98.0,
        help="percentage of the points, or of the windows of histograms, in view (default: 98)",
    )
    one.add_argument("--smooth", type=_positive, help="points in a mean (default: a fiftieth of a long curve)")
    one.add_argument("--log", action="store_true", help="logarithmic axis for curves")
    one.add_argument("--max", type=_positive, default=24, help="number of series at most (default: 24)")
    one.set_defaults(run=_plot)

    one = commands.add_parser(
        "replay",
        help="send runs in JSON files to another backend",
        description="Send runs in JSON files to another backend: names, hyperparameters, contexts, steps and times. "
        "Stopped and run again, it goes on where it was; a file beside each run says where that is.",
    )
    one.add_argument("path", type=Path, help="file of a run, or folder of runs")
    one.add_argument("--provider", help="name of the backend: aim, mlflow, tensorboard, wandb or another")
    one.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="field of its configuration; may be repeated"
    )
    one.add_argument("--config", type=Path, metavar="FILE", help="its configuration as JSON; --set amends it")
    one.set_defaults(run=_replay)

    one = commands.add_parser("deliver", help="deliver what jobs that will not resume have left in their backlogs")
    one.add_argument("--backlog", type=Path, default=Path(".d9d_tracker"), help="folder (default: .d9d_tracker)")
    one.add_argument("--timeout", type=float, default=60.0, help="seconds to wait for each backend (default: 60)")
    one.add_argument("--list", action="store_true", help="only show what there is")
    one.set_defaults(run=_deliver)

    one = commands.add_parser("demo", help="train a small network on real data and track it")
    one.add_argument("--provider", choices=_DEMOS, default="aim", help="backend (default: aim)")
    one.add_argument("--steps", type=_positive, default=600, help="training steps (default: 600)")
    one.add_argument("--out", type=Path, default=Path("runs"), help="folder of the runs (default: runs)")
    one.set_defaults(run=_demo)

    one = commands.add_parser(
        "doctor", help="show what this machine supports, and check that tracking is free of syncs"
    )
    one.set_defaults(run=_doctor)
    return parser


def _show(chosen: argparse.Namespace) -> int:
    show(chosen.path, chosen.series, chosen.follow, Console())
    return 0


def _plot(chosen: argparse.Namespace) -> int:
    remarks = plot(
        chosen.paths, chosen.series, chosen.out, chosen.steps, chosen.clip, chosen.smooth, chosen.log, chosen.max
    )
    console = Console(highlight=False)
    console.print(f"{chosen.out}", markup=False, soft_wrap=True)
    for remark in remarks:
        console.print(remark, markup=False, soft_wrap=True)
    return 0


def _demo(chosen: argparse.Namespace) -> int:
    from d9d_tracker.commands.demo import load

    return load().main(chosen.provider, chosen.steps, chosen.out)


def _doctor(chosen: argparse.Namespace) -> int:
    from d9d_tracker.commands.doctor import main as doctor

    return doctor()


def _deliver(chosen: argparse.Namespace) -> int:
    from d9d_tracker.commands.deliver import deliver

    return 0 if deliver(chosen.backlog, chosen.timeout, chosen.list, Console(markup=False)) else 1


def _replay(chosen: argparse.Namespace) -> int:
    from d9d_tracker.commands.replay import config_from, replay

    config = config_from(chosen.provider, chosen.set, chosen.config)
    faults = replay(chosen.path, config, Console())
    for fault in faults:
        Console(stderr=True).print(f"replay: {fault}", style="red", markup=False, highlight=False, soft_wrap=True)
    return 1 if faults else 0


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return number


def _percentage(text: str) -> float:
    number = float(text)
    if not 0 < number <= 100:
        raise argparse.ArgumentTypeError(f"{text} is not a percentage above 0, and 100 at most")
    return number


def _span(text: str) -> tuple[int, int]:
    first, _, last = text.partition(":")
    try:
        return int(first or 0), int(last or 2**62)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text} is not FROM:TO, such as 1000:2000 or 1000:") from None


if __name__ == "__main__":
    sys.exit(main())
