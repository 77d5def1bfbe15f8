"""The jobs of several processes are those of the tests of ranks."""

import sys
from pathlib import Path

for _folder in ("watch", "ranks"):
    sys.path.insert(0, str(Path(__file__).parents[1] / _folder))
