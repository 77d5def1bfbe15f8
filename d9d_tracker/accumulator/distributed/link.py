"""One edge of the tree: frames of bytes over a TCP connection between two ranks.

Gloo's own send and receive are no use here: a receive that times out closes every connection of its group, and one
that waits without a timeout cannot be ended, not even to leave the process. A socket can be read for a while, left and
read again, and says at once when the process on the other side is gone.
"""

import contextlib
import hmac
import logging
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable

logger = logging.getLogger("d9d_tracker")

_LENGTH = struct.Struct("<Q")
_HELLO = struct.Struct("<32sQ")  # the secret of the job, the rank that calls
_CHUNK = 1 << 20
_YES = b"\x01"


class LinkLostError(Exception):
    """The other side has closed the connection, or died."""


class FrameReader:
    """The receiving end. A read that runs out of time loses nothing: the next one goes on where it stopped.

    Attributes:
        frames: How many frames have arrived.
        bytes: How many bytes they took, with their lengths.
    """

    def __init__(self, connection: socket.socket):
        self.frames = 0
        self.bytes = 0
        self._connection = connection
        self._length: int | None = None
        self._buffer = bytearray()

    def read(self, deadline: float) -> bytearray | None:
        """Return the next frame.

        Args:
            deadline: When to give up, in seconds of ``time.monotonic``. What has arrived already is read in any case.

        Returns:
            The frame, or None if it is not complete in time.

        Raises:
            LinkLostError: If the connection is closed.
        """
        if self._length is None:
            if not self._fill(_LENGTH.size, deadline):
                return None
            self._length = int(_LENGTH.unpack(self._buffer)[0])
            self._buffer = bytearray()
        length: int = self._length
        if not self._fill(length, deadline):
            return None
        frame, self._buffer, self._length = self._buffer, bytearray(), None
        self.frames += 1
        self.bytes += _LENGTH.size + length
        return frame

    def acknowledge(self) -> None:
        """Tell the other side that its last frame has arrived."""
        with contextlib.suppress(OSError):
            self._connection.sendall(_YES)

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def _fill(self, size: int, deadline: float) -> bool:
        while len(self._buffer) < size:
            try:
                self._connection.settimeout(max(1e-3, deadline - time.monotonic()))
                received = self._connection.recv(min(size - len(self._buffer), _CHUNK))
            except TimeoutError:
                return False
            except OSError as error:
                raise LinkLostError(str(error)) from error
            if not received:
                raise LinkLostError("the connection was closed")
            self._buffer += received
        return True


class FrameSender:
    """The sending end, with a thread, so that a parent that is slow or hangs holds nobody up.

    Args:
        connection: The connection to the parent.
        limit: Most bytes to hold for the parent; the oldest items are dropped, and reported, beyond it.
        who: The parent in words, for messages.

    Attributes:
        frames: How many frames were sent.
        bytes: How many bytes they took, with their lengths.
        dropped: How many frames were not sent because the parent did not read, or is gone.
    """

    def __init__(self, connection: socket.socket, limit: int, who: str):
        self.frames = 0
        self.bytes = 0
        self.dropped = 0
        self._connection = connection
        self._limit = limit
        self._who = who
        self._changed = threading.Condition()
        self._items: deque[tuple[int, Callable[[], bytes]]] = deque()
        self._busy = False
        self._lost = False
        self._closing = False
        self._thread = threading.Thread(target=self._work, name="d9d_tracker sender", daemon=True)
        self._thread.start()

    def put(self, size: int, make: Callable[[], bytes]) -> None:
        """Queue a frame. Never waits.

        Args:
            size: About how many bytes it holds.
            make: Makes the frame just before it is sent, so that dropping one before it is no harm to it.
        """
        with self._changed:
            if self._lost:
                self.dropped += 1
                return
            self._items.append((size, make))
            dropped = 0
            while len(self._items) > 1 and sum(size for size, _ in self._items) > self._limit:
                self._items.popleft()
                dropped += 1
            self._changed.notify_all()
        if dropped:
            self.dropped += dropped
            logger.error("%s does not take windows: %d dropped", self._who, dropped)

    def close(self, deadline: float) -> bool:
        """Send what is queued, within bounds, and end the thread and the connection.

        Args:
            deadline: When to give up, in seconds of ``time.monotonic``.

        Returns:
            Whether everything was sent.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._lost or not (self._items or self._busy), deadline - time.monotonic())
            sent = not (self._lost or self._items or self._busy)
            left = len(self._items) + self._busy
        if sent and self._is_cut_off():
            self._lose(OSError("the connection was closed before everything was read"))
            sent = False
        if not sent and left:
            self.dropped += left
            logger.error("%s did not take the last %d windows of this rank", self._who, left)
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        # Wakes the thread if it is stuck in a send, and tells the parent that nothing more comes.
        with contextlib.suppress(OSError):  # the parent may be gone already
            self._connection.shutdown(socket.SHUT_WR if sent else socket.SHUT_RDWR)
        self._thread.join(1.0)
        self._connection.close()
        return sent

    def _work(self) -> None:
        while True:
            with self._changed:
                self._busy = False
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._items or self._closing)
                if self._closing:
                    return
                _, make = self._items.popleft()
                self._busy = True
            frame = make()
            try:
                self._connection.sendall(_LENGTH.pack(len(frame)))
                self._connection.sendall(frame)
            except OSError as error:
                self._lose(error)
                return
            self.frames += 1
            self.bytes += _LENGTH.size + len(frame)

    def _is_cut_off(self) -> bool:
        """Tell whether the parent has closed the connection without an acknowledgement. Does not wait for one."""
        try:
            self._connection.settimeout(0.0)
            return self._connection.recv(1) != _YES
        except BlockingIOError:
            return False
        except OSError:
            return True

    def _lose(self, error: OSError) -> None:
        with self._changed:
            self._lost, was_closing = True, self._closing
            self.dropped += len(self._items) + self._busy
            self._items.clear()
            self._busy = False
            self._changed.notify_all()
        if not was_closing:
            logger.error(
                "%s is gone (%s): what this rank and the ranks below it log does not arrive any more; training goes on",
                self._who,
                error,
            )


def listen(address: str) -> socket.socket:
    """Open a port for the children of a rank.

    Args:
        address: The address to listen on; empty for all.
    """
    return socket.create_server((address, 0), backlog=64)


def accept(server: socket.socket, secret: bytes, ranks: list[int], deadline: float) -> dict[int, socket.socket]:
    """Take the calls of the children.

    Args:
        server: What ``listen`` returned.
        secret: 32 bytes that the ranks of this run share; a caller that does not know them is turned away.
        ranks: The children.
        deadline: When to give up, in seconds of ``time.monotonic``.

    Returns:
        A connection to each child.

    Raises:
        TimeoutError: If a child has not called in time.
    """
    connections: dict[int, socket.socket] = {}
    while len(connections) < len(ranks):
        server.settimeout(max(1e-3, deadline - time.monotonic()))
        connection, _ = server.accept()
        try:
            connection.settimeout(max(1e-3, min(5.0, deadline - time.monotonic())))
            hello = b""
            while len(hello) < _HELLO.size:
                received = connection.recv(_HELLO.size - len(hello))
                if not received:
                    raise OSError("no hello")
                hello += received
        except OSError:
            connection.close()
            continue
        theirs, rank = _HELLO.unpack(hello)
        if not hmac.compare_digest(theirs, secret) or rank not in ranks or rank in connections:
            connection.close()
            continue
        connection.sendall(_YES)
        connections[rank] = connection
    return connections


def call(addresses: list[str], port: int, secret: bytes, rank: int, deadline: float) -> socket.socket:
    """Call the parent of a rank.

    Args:
        addresses: Where it may be reached; tried in turn.
        port: Its port.
        secret: 32 bytes that the ranks of this run share.
        rank: The rank that calls.
        deadline: When to give up, in seconds of ``time.monotonic``.

    Raises:
        OSError: If it cannot be reached.
    """
    failures: list[str] = []
    for turn, address in enumerate(addresses):
        share = (deadline - time.monotonic()) / (len(addresses) - turn)
        try:
            connection = socket.create_connection((address, port), timeout=max(1e-3, share))
            connection.sendall(_HELLO.pack(secret, rank))
            if connection.recv(1) == _YES:
                connection.settimeout(None)
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                return connection
            connection.close()
            failures.append(f"{address}:{port} answers, but is another program")
        except OSError as error:
            failures.append(f"{address}:{port} ({error})")
    raise OSError(f"no way to the parent in the tree: {'; '.join(failures)}")


def own_addresses(towards: str | None) -> list[str]:
    """Return the addresses under which other hosts may reach this one, the likeliest first.

    Args:
        towards: A host that all ranks can reach, if known: the address used on the way there comes first.
    """
    found: list[str] = []
    if towards:
        # Connecting a datagram socket sends nothing; it only chooses the interface.
        with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((towards, 9))
            found.append(probe.getsockname()[0])
    with contextlib.suppress(OSError):
        found.append(socket.gethostbyname(socket.gethostname()))
    return list(dict.fromkeys(found))
