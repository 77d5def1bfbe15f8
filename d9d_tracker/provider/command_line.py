"""Commands for people to paste."""

import shlex
import shutil
import sys
from pathlib import Path


def command(name: str, *arguments: object) -> str:
    """Return a command line that runs a program of this environment."""
    program = Path(sys.executable) if name == "python" else Path(sys.executable).with_name(name)
    found = shutil.which(name)
    if found is not None and (Path(found) == program or not program.exists()):
        words = name
    else:
        words = str(program.relative_to(Path.cwd()) if program.is_relative_to(Path.cwd()) else program)
    return shlex.join([words, *map(str, arguments)])
