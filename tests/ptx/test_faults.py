"""Faults planted in the compiled kernels: each is caught, and most of the barriers are shown to be needed."""

import re

import pytest
from cases import Case, check
from memory import Fault

INLINE = Case(data="normal")

# What is replaced, by what, in which case, and what is said of it.
PLANTED = {
    "a vector is read off its boundary": (r"(ld\.global\.v4\.b32 .*) \+ 0 \]", r"\1 + 4 ]", INLINE, "misaligned"),
    "reads run past the tensor": (r"(ld\.global\.v4\.b32 .*) \+ 0 \]", r"\1 + 65536 ]", INLINE, "read at byte"),
    "the array in shared memory is too small": (r"cells_of_program\[2048\]", "cells_of_program[1024]", INLINE, "which"),
    "the array is declared twice": (r"(\.shared .*2048\];)", r"\1 \1", INLINE, "declared twice"),
    "cells are not cleared": (r"st\.shared\.b32 \[a\], 0;", "", INLINE, "where nobody wrote"),
    "cells are cleared to one": (r"st\.shared\.b32 \[a\], 0;", "st.shared.b32 [a], 1;", INLINE, "counts differ"),
    "a value counts twice": (r"red\.shared\.add\.u32 \[a\], 1", "red.shared.add.u32 [a], 2", INLINE, "counts differ"),
    "counting is no atomic": (r"red\.shared\.add\.u32 \[a\], 1", "st.shared.u32 [a], 1", INLINE, "a race"),
    "the ticket is taken twice": (r"(mov\.b64\s+%rd\d+), 1;", r"\1, 2;", INLINE, "."),
    "a shuffle is not met by its warp": (r"shfl\.sync", "@%p2 shfl.sync", INLINE, "elsewhere|which nobody wrote"),
    "a reduction over the wrong lanes": (r"(shfl\.sync\.bfly.*), 16, 31", r"\1, 8, 31", INLINE, "SUM|MIN|MAX"),
    "the pivot is added": (r"sub\.rn\.f32", "add.rn.f32", INLINE, "SUM"),
    "minima are maxima": (r"min\.f32", "max.f32", INLINE, "."),
    "what is not zero counts as zero": (r"setp\.eq\.f32", "setp.ne.f32", INLINE, "counts differ"),
    "the bank's rows are mixed up": (r"16448", "16440", INLINE, "counts differ"),
    "partial results come from another place": (r"(ld\.global\.cg.*) \+ 0 \]", r"\1 + 8 ]", INLINE, "."),
    "a program that does not end": (r"@%p\d+ bra\s+(\$L__BB0_\d+);", r"bra \1;", INLINE, "."),
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_fault_is_caught(name):
    pattern, replacement, case, words = PLANTED[name]
    planted = []

    def plant(text):
        changed, number = re.subn(pattern, replacement, text)
        planted.append(number)
        return changed

    with pytest.raises((Fault, AssertionError), match=words):
        check(case, plant)
    assert planted[0] > 0
