"""Where everything is said: the logger ``d9d_tracker``, which applications configure by that name."""

import logging

logger = logging.getLogger("d9d_tracker")
_said: set[object] = set()


def warn_once(what: object, words: str, *arguments: object) -> None:
    """Warn of something the first time that a process meets it."""
    if what not in _said:
        _said.add(what)
        logger.warning(words, *arguments)
