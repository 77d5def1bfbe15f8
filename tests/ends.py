"""The end of a process that was forked for a test."""

import ctypes


def end_with_interpreter(status: int) -> None:
    """End as any process does, with its interpreter, where threads may abort it; multiprocessing's own leave that out.

    Only what C++ has made is left as it is: to take torch's operators apart, one by one, is half of such an end.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "on_exit"):  # not on every system
        libc.on_exit(libc._exit, None)
    ctypes.pythonapi.Py_Exit(status)
