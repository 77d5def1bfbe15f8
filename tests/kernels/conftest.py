"""The helpers are modules that lie beside the tests; bench is imported from the repository."""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2])]
