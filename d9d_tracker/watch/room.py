"""Whether there is room for a watch among what a run logs already."""

from collections.abc import Collection, Mapping

from d9d_tracker.errors import TrackerValueError
from d9d_tracker.series.registry import Registry
from d9d_tracker.series.series import ScalarSeries, label


def refuse_too_many(names: Collection[str], planned: set[str], registry: Registry, field: str) -> None:
    """Refuse more series than there are slots for, next to what other watches have planned and may have none for."""
    known = {series.name for series in registry.series}
    needed, free = len(set(names) - known), registry.capacity - len(registry.series) - len(planned - known)
    if needed > free:
        raise TrackerValueError(
            f"watch: {needed} series, and {free} of {registry.capacity} slots are free; set "
            f"accumulator.{field}={registry.capacity - free + needed} or more, or watch a part of the module"
        )


def refuse_contradictions(
    wanted: Mapping[str, ScalarSeries], written: set[str], registry: Registry[ScalarSeries]
) -> None:
    """Refuse norms whose series were logged otherwise, by hand or before the run went on."""
    for known in registry.series:
        own = wanted.get(known.name)
        if (own is None and known.name in written and not known.sums) or (
            own is not None and (known.reduce, known.root, bool(known.sums)) != (own.reduce, own.root, True)
        ):
            raise TrackerValueError(
                f"watch: {label(known.name, known.context)} was logged with {known.describe()} before; a series has "
                "one: give the watch a prefix=..."
            )
