"""The troubled backend is a module that lies beside its tests, where processes that tests start find it too."""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2])]
