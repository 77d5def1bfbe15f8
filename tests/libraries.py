"""Libraries that tests compile, once on a machine."""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch


def built(source: Path, name: str, *flags: str) -> Path:
    """Compile a source against torch, unless that was done before; return the library, in a folder of its own."""
    what = repr((source.read_text(), name, flags, torch.__version__, sys.version))
    key = hashlib.sha256(what.encode()).hexdigest()[:16]
    folder = Path(tempfile.gettempdir()) / f"d9d_tracker-{source.stem}-{os.getuid()}-{key}"
    if not folder.exists():
        torchs, made = Path(torch.__file__).parent, Path(tempfile.mkdtemp())
        command = [os.environ.get("CXX", "c++"), "-std=c++20", "-shared", "-fPIC", str(source), "-o", str(made / name)]
        command += [f"-I{torchs}/include", f"-L{torchs}/lib", "-lc10", "-ltorch_cpu", *flags]
        subprocess.run(command, check=True)
        try:
            made.rename(folder)
        except OSError:  # another process was quicker
            shutil.rmtree(made)
    assert folder.stat().st_uid == os.getuid(), f"{folder} is somebody else's"
    return folder / name
