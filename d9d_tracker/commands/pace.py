"""How fast a run is and what it takes, in a line: of what the instrument panel has logged last."""

from collections.abc import Sequence

from d9d_tracker.reading import Histograms, Scalars

# What there is in a run of one process, or else of all ranks: the mean time, and the fullest memory.
_STEP = ("time/step", "time/step/mean")
_MEMORY = ("memory/allocated/peak", "memory/allocated/peak/max", "memory/host", "memory/host/max")
PATTERNS = (*_STEP, *_MEMORY, "*/s")


def pace(series: Sequence[Scalars | Histograms]) -> str:
    """Return ``1.23 s a step, 45k tokens/s, 71 GiB``, as far as it is known."""
    steady = [one for one in series if isinstance(one, Scalars) and "compiling" not in one.context]
    last = {one.name: float(one.values[-1]) for one in sorted(steady, key=lambda one: int(one.steps[-1]))}
    words = [f"{_short(last[name], '', 'm', 'µ')}s a step" for name in _STEP if name in last][:1]
    words += [f"{_short(value).rstrip()} {name}" for name, value in last.items() if name.endswith("/s")]
    words += [f"{last[name] / 2**30:.3g} GiB" for name in _MEMORY if name in last][:1]
    return ", ".join(words)


def _short(value: float, *units: str) -> str:
    """Return three digits and a unit: a prefix, thousand by thousand up, or down where units are given."""
    for unit in units:
        if abs(value) >= 1 or unit == units[-1]:
            return f"{value:.3g} {unit}"
        value *= 1000
    for unit in ("", "k", "M", "G"):
        if abs(value) < 999.5:
            return f"{value:.3g}{unit}"
        value /= 1000
    return f"{value:.3g}T"
