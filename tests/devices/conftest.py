"""``devices`` is a folder of modules that lies among the tests; its ranks use the helpers of others."""

import sys
from pathlib import Path

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS), str(TESTS / "devices"), str(TESTS / "ranks")]
