"""The helpers are modules that lie beside the tests; bench is imported from the repository."""

import os
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2])]


def _patch_the_language_once():
    """Triton's interpreter patches its language at every call of a device function: more work than what is called."""
    from triton.runtime import interpreter

    patch, patched = interpreter._patch_lang, set()

    def patch_once(function):
        seen = {id(value) for value in function.__globals__.values()}
        modules = frozenset(seen & {id(interpreter.tl), id(interpreter.tl.core)})
        if modules not in patched:
            patched.add(modules)
            patch(function)
        return interpreter._LangPatchScope()

    interpreter._patch_lang = patch_once


if os.environ.get("TRITON_INTERPRET") == "1":
    _patch_the_language_once()
