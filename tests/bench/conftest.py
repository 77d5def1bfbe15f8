import gc
import sys
from pathlib import Path

import pytest

# bench is no part of the package: it is imported from the repository, as `python -m bench` does.
sys.path.insert(0, str(Path(__file__).parents[2]))


@pytest.fixture(autouse=True)
def no_garbage(monkeypatch):
    """Nothing is timed here, and with every framework imported a collection takes a third of a second."""
    monkeypatch.setattr(gc, "collect", lambda *_: 0)
    monkeypatch.setattr(gc, "unfreeze", lambda: None)  # see tests/conftest.py
