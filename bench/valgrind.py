"""Valgrind around a process of the benchmark, which says itself what is counted."""

import os
import subprocess
from pathlib import Path

_SWITCH = """
#include <valgrind/callgrind.h>
void begin(void) { CALLGRIND_START_INSTRUMENTATION; CALLGRIND_ZERO_STATS; }
void dump(void) { CALLGRIND_DUMP_STATS; }
void end(void) { CALLGRIND_DUMP_STATS; CALLGRIND_STOP_INSTRUMENTATION; }
"""
ENVIRONMENT = {**os.environ, "ATEN_CPU_CAPABILITY": "avx2"}  # Valgrind knows no AVX-512


def prepare(folder: Path) -> None:
    """Make the switch by which a process begins and ends a count, ``switch.so``, and a compiler for Inductor, ``cxx``.

    Args:
        folder: Where.
    """
    (folder / "switch.c").write_text(_SWITCH)
    compile_switch = ["cc", "-O1", "-shared", "-fPIC", "-o", str(folder / "switch.so"), str(folder / "switch.c")]
    subprocess.run(compile_switch, check=True, capture_output=True)
    (folder / "cxx").write_text('#!/bin/sh\nexec c++ "$@" -march=haswell\n')
    (folder / "cxx").chmod(0o755)


def under_valgrind(folder: Path, *options: str) -> list[str]:
    """Return what goes before a command, to count it; each count is a file ``counts*``, of each thread one.

    Args:
        folder: Where they are written.
        *options: Of callgrind, besides.
    """
    command = ["valgrind", "--tool=callgrind", "--instr-atstart=no", "--separate-threads=yes", *options]
    return [*command, f"--callgrind-out-file={folder}/counts"]
