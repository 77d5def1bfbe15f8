"""A member's ear and voice: it hears what the lead writes, and answers for as long as its process is alive."""

import threading
from typing import Any

from .board import Board, BoardLostError

_CLOSING_SECONDS = 1.0
_NOTHING = {"generation": 0, "ask": 0, "over": False}


class Pulse:
    """Reads what the lead has written, once a period, and answers when it asks; nothing is written else.

    ``lead`` is what it has written last; ``is_cut_off``, whether the store is gone, and with it the lead.
    """

    def __init__(self, board: Board, rank: int, period: float):
        self.lead: dict[str, Any] = _NOTHING
        self.is_cut_off = False
        self._board, self._rank, self._period = board, rank, period
        self._answer = {"ask": 0, "generation": 0, "waits": False, "left": False, "back": -1, "lost": None}
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="d9d_tracker pulse", daemon=True)
        self._thread.start()

    def look(self) -> None:
        """Read what the lead has written, now."""
        try:
            self.lead = self._board.get("lead") or _NOTHING
        except BoardLostError:
            self.is_cut_off = True

    def know(self, **changes: Any) -> None:
        """Change what this rank answers from now on."""
        with self._lock:
            self._answer |= changes

    def say(self, **changes: Any) -> None:
        """Change what this rank answers, and write it at once."""
        with self._lock:
            self._answer |= changes
            try:
                self._board.put(f"answer/{self._rank}", self._answer)
            except BoardLostError:
                self.is_cut_off = True

    def close(self) -> None:
        """End the thread."""
        self._stopped.set()
        self._thread.join(_CLOSING_SECONDS)

    def beat(self) -> None:
        """Look, and answer if the lead has asked."""
        self.look()
        if self.lead["ask"] != self._answer["ask"]:
            self.say(ask=self.lead["ask"])

    def _beat(self) -> None:
        while not self._stopped.wait(self._period) and not self.is_cut_off:
            self.beat()
