"""What is due at the interpreter's exit is closed once, by the process that has opened it."""

import subprocess
import sys

import pytest

FORKS = """
import os, sys
from d9d_tracker import at_exit
parent, key = os.getpid(), object()
at_exit.add(key, lambda: print("closed by", "parent" if os.getpid() == parent else "child", flush=True))
if os.fork() == 0:
    {ending}
os.wait()
"""
ORDER = """
from d9d_tracker import at_exit
for name in ("first", "second", "third"):
    at_exit.add(name, lambda name=name: print(name, 1 / (name != "second")))
at_exit.remove("third")
"""


def ran(program):
    command = [sys.executable, "-W", "ignore", "-c", program]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)


@pytest.mark.parametrize("ending", ["sys.exit()", "raise ZeroDivisionError"])
def test_what_the_parent_opened_no_child_closes(ending):
    assert ran(FORKS.format(ending=ending)).stdout == "closed by parent\n"


def test_the_latest_is_closed_first_and_one_that_fails_holds_up_no_other():
    done = ran(ORDER)
    assert done.stdout == "first 1.0\n"
    assert "a run could not be closed at exit" in done.stderr
