"""The troubled backend is a module that lies beside its tests, where the writer's process finds it too."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
