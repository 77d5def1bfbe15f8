"""The end of a process that was forked for a test."""

import ctypes


def end_with_interpreter(status: int) -> None:
    """End as any process does, with its interpreter, which multiprocessing's own leave out; and what may abort there.

    Only what C++ has made is not taken apart: torch's operators, one by one, are half of the time of such an end.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "on_exit"):  # not every system's has it
        libc.on_exit(libc._exit, None)
    ctypes.pythonapi.Py_Exit(status)
