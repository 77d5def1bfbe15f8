"""What the program prints, for a backend that stores it and is in another process."""

import functools
import sys
from collections import deque
from collections.abc import Callable

_MOST_WRITES = 10_000  # that are kept until the backend takes them


class Terminal:
    """Notes what is written to the standard streams, which goes there as before, until it is closed."""

    def __init__(self) -> None:
        self._written: deque[str] | None = deque(maxlen=_MOST_WRITES)
        streams = [stream for stream in (sys.stdout, sys.stderr) if stream is not None]
        self._streams = [(one, one.write, functools.partial(self._write, one.write)) for one in streams]
        for stream, _, ours in self._streams:
            stream.write = ours

    def take(self) -> str:
        """Return what was written since the last call."""
        written, self._written = self._written or (), deque(maxlen=_MOST_WRITES)
        return "".join(map(str, written)).encode("utf-8", "backslashreplace").decode()

    def close(self) -> None:
        """Note nothing more."""
        for stream, theirs, ours in self._streams:
            if stream.write is ours:  # else somebody else listens too, by now
                stream.write = theirs
        self._written = None

    def _write(self, write: Callable[[str], int], text: str) -> int:
        if self._written is not None:
            self._written.append(text)
        return write(text)
