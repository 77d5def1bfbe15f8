"""The executor is four modules that lie beside its tests; its cases use the helpers of tests/kernels and bench."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "kernels"), str(HERE.parents[1])]
