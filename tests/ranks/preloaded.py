"""What the ranks of the tests run, for the process that they are forked from."""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "windows")]

import programs  # noqa: E402, F401 what ranks are forked with
import sharded_programs  # noqa: E402, F401 likewise
