"""Names that a backend makes by adding to those of series: kept apart from series that are called so."""

from collections.abc import Iterable

from d9d_tracker.log import logger

_MARK = "~"
_BACKEND: tuple[str, str] = ("", "")


class SeriesNames:
    """The names under which a run writes its series, each of one owner; the second one gets a ``~`` behind it.

    ``bins("act")`` may be written as ``act/mean``, which is also what ``scalar("act/mean")`` is called.
    """

    def __init__(self, run_id: str, reserved: Iterable[str] = ()):
        self._run_id = run_id
        self._owners = dict.fromkeys(reserved, _BACKEND)
        self._names: dict[tuple[str, str], str] = {}

    def name(self, series: str, suffix: str = "") -> str:
        """Return the name to write under: the series' with the suffix, unless another series has it."""
        owner = (series, suffix)
        known = self._names.get(owner)
        if known is not None:
            return known
        name = series + suffix
        while self._owners.setdefault(name, owner) != owner:
            name += _MARK
        if name != series + suffix:
            words = "run %r: %s is written as %r, because %s is so called already; give one of them another name"
            logger.warning(words, self._run_id, _words(owner), name, _words(self._owners[series + suffix]))
        self._names[owner] = name
        return name


def _words(owner: tuple[str, str]) -> str:
    if owner == _BACKEND:
        return "something of the backend's own"
    series, suffix = owner
    return f"{suffix.lstrip('/')!r} of series {series!r}" if suffix else f"series {series!r}"
