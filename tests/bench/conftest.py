import sys
from pathlib import Path

# bench is no part of the package: it is imported from the repository, as `python -m bench` does.
sys.path.insert(0, str(Path(__file__).parents[2]))
