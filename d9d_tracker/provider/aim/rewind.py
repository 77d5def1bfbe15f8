"""Taking back what an earlier life of a run wrote to an Aim repository."""

from typing import Any

_COLUMNS = ("val", "epoch", "time", "step")
_METRIC_VERSION = 2
_SYSTEM = "__system__"


def rewind(run: Any, step: int) -> None:
    """Delete the points at ``step`` or later, and those that a kill cut in half, but not Aim's system metrics.

    Aim overwrites a point that is logged again at its step. One that is not, such as the histogram of a window that
    ended early, would stand beside those that hold the same values.
    """
    for kind in ("metric", "distributions"):
        for context, names in list(run.meta_run_tree.get(("typed_traces", kind), {}).items()):
            for name in names:
                if not name.startswith(_SYSTEM):
                    _cut(run, kind, context, name, step)
    run._tracker.sequence_infos.clear()
    run._tracker._preload_sequence_infos()


def _cut(run: Any, kind: str, context: int, name: str, step: int) -> None:
    meta = run.meta_run_tree.subtree(("traces", context, name))
    version = meta.get("version", 1)
    series = run.series_run_trees[version].subtree((context, name))
    # The keys of a metric are hashes of its steps; those of a distribution are its steps.
    names = _COLUMNS if version == _METRIC_VERSION else _COLUMNS[:-1]
    columns = {column: dict(series.array(column).items()) for column in names}
    whole = set.intersection(*map(set, columns.values()))
    steps = {key: columns["step"][key] if version == _METRIC_VERSION else key for key in whole}
    kept = sorted((key for key in whole if steps[key] < step), key=steps.__getitem__)
    for column in names:
        for key in columns[column].keys() - set(kept):
            del series[column, key]
    if kept:
        _summarize(meta, [steps[key] for key in kept], [columns["val"][key] for key in kept])
    else:
        del run.meta_run_tree["traces", context, name]
        del run.meta_run_tree["typed_traces", kind, context, name]


def _summarize(meta: Any, steps: list[int], values: list[Any]) -> None:
    """Describe the points that are left, as Aim does when they are logged."""
    for which, position in {"first": 0, "last": -1}.items():
        meta[which], meta[f"{which}_step"] = values[position], steps[position]
    numbers = [value for value in values if isinstance(value, float | int) and value == value]
    for which, extreme in {"min": min, "max": max}.items():
        if numbers:
            meta[which] = extreme(numbers)
        elif meta.get(which) is not None:
            del meta[which]
