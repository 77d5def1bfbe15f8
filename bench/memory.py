"""(f) Memory held per series, on the device and on the host."""

import gc
import tracemalloc

import torch

from d9d_tracker import AccumulatorConfig

from .contenders import EVERY, Contender, Nothing, Ours, configure, others, ours, start
from .plan import Plan
from .report import Result, Row


def run(plan: Plan) -> Result:
    """Measure what a series costs to hold."""
    series, checkpoints = (4, (1, 20)) if plan.quick else (20, (1, 10, 50, 200))
    result = Result(
        "f",
        f"Bytes held per scalar series, of {series}, after N steps",
        {f"{steps:,} steps": ",.0f" for steps in checkpoints},
        series={"plot": "memory", "steps": checkpoints},
    )
    wanted = {**others(plan.folder, plan.device), **ours(plan.folder, plan.device, ("null", "jsonl"))}
    wanted["d9d_tracker → null, sized to fit"] = lambda: _sized(plan, series)
    values = {f"value/{index}": value for index, value in enumerate(torch.randn(series, device=plan.device).unbind())}
    for name, begin in {Nothing.name: Nothing, **wanted}.items():
        with start({name: begin}) as (warm, missing):  # what a package allocates once is not charged to the series
            for contender in warm:
                contender.set_step(1)
                contender.scalars(values)
                contender.end_step()
        if missing:
            result.missing |= missing
            continue
        result.rows.append(_measure(name, begin, values, checkpoints))
    config = AccumulatorConfig()
    result.remarks = [
        "Tensors and Python's objects; not what C++ code and other processes hold (wandb's), nor files.",
        f"d9d_tracker allocates room for {config.max_scalars} scalars and {config.max_histograms} histograms at once, "
        f"with windows of {EVERY} steps: {_bytes_per_slot(plan)}. max_scalars and max_histograms make it smaller. "
        "Lists grow with every step for as long as nothing empties them.",
    ]
    return result


def _sized(plan: Plan, series: int) -> Contender:
    config = configure("null", plan.folder, plan.device)
    assert config.accumulator is not None
    fits = config.accumulator.model_copy(update={"max_scalars": series, "max_histograms": 1})
    return Ours(config.model_copy(update={"accumulator": fits}), "d9d_tracker → null, sized to fit")


def _measure(name: str, begin, values: dict[str, torch.Tensor], checkpoints: tuple[int, ...]) -> Row:
    gc.collect()
    tracemalloc.start()
    tensors, objects = _held()
    cells: dict[str, float] = {}
    try:
        with start({name: begin}) as (contenders, _):
            contender = contenders[0]
            for step in range(1, max(checkpoints) + 1):
                contender.set_step(step)
                contender.scalars(values)
                contender.end_step()
                if step in checkpoints:
                    now = _held()
                    cells[f"{step:,} steps"] = max(0, now[0] - tensors + now[1] - objects) / len(values)
            return Row(contender.name, contender.kind, dict(cells), _NOTES.get(contender.name, ""))
    finally:
        tracemalloc.stop()


def _held() -> tuple[int, int]:
    """Return bytes of all tensors that live, each storage once, and bytes that Python's allocator handed out."""
    gc.collect()
    storages = {}
    for thing in gc.get_objects():
        if type(thing) in (torch.Tensor, torch.nn.Parameter):
            storage = thing.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values()), tracemalloc.get_traced_memory()[0]


def _bytes_per_slot(plan: Plan) -> str:
    from d9d_tracker.bank.buffers import Buffers

    config = AccumulatorConfig(device=plan.device, sync_every=EVERY)
    buffers = Buffers(config)
    scalars = buffers.scalars.current.nbytes + buffers.scalars.window.nbytes
    state = buffers.histograms
    histograms = state.counts.nbytes + state.moments.nbytes + state.partials.nbytes
    return (
        f"{scalars / config.max_scalars:,.0f} bytes a scalar series and {histograms / config.max_histograms:,.0f} a "
        f"histogram series, {(scalars + histograms) / 2**20:.1f} MiB in all"
    )


_NOTES = {
    ".item() to a list": "grows without end",
    "d9d_tracker → null": "its whole preallocated bank, histograms included, divided by these series",
    "d9d_tracker → jsonl": "its whole preallocated bank, histograms included, divided by these series",
    "d9d_tracker → null, sized to fit": "max_scalars as many as there are series, max_histograms=1",
}
