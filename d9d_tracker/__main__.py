"""Command line: ``python -m d9d_tracker demo``, ``doctor`` and ``deliver``."""

import argparse
import sys
from pathlib import Path

from rich.console import Console

from d9d_tracker.deliver import deliver
from d9d_tracker.demo import PROVIDERS
from d9d_tracker.demo import main as run_demo
from d9d_tracker.doctor import main as run_doctor


def main(arguments: list[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: Arguments of the command line, without the program; those of the process by default.

    Returns:
        The exit status.
    """
    parser = argparse.ArgumentParser(prog="python -m d9d_tracker", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    demo = commands.add_parser("demo", help="train a small network on real data and track it")
    demo.add_argument("--provider", choices=PROVIDERS, default="aim", help="backend (default: aim)")
    demo.add_argument("--steps", type=_positive, default=600, help="training steps (default: 600)")
    demo.add_argument("--out", type=Path, default=Path("runs"), help="folder of the runs (default: runs)")
    commands.add_parser("doctor", help="show what this machine supports, and check that tracking is free of syncs")
    left = commands.add_parser("deliver", help="deliver what jobs that will not resume have left in their backlogs")
    left.add_argument("--backlog", type=Path, default=Path(".d9d_tracker"), help="folder (default: .d9d_tracker)")
    left.add_argument("--timeout", type=float, default=60.0, help="seconds to wait for each backend (default: 60)")
    left.add_argument("--list", action="store_true", help="only show what there is")
    chosen = parser.parse_args(arguments)
    if chosen.command == "deliver":
        return 0 if deliver(chosen.backlog, chosen.timeout, chosen.list, Console()) else 1
    if chosen.command == "doctor":
        return run_doctor()
    return run_demo(chosen.provider, chosen.steps, chosen.out)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return number


if __name__ == "__main__":
    sys.exit(main())
