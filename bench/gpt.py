"""(b) A GPT with 10 scalars and a histogram of every gradient at every step."""

import copy

from .contenders import BACKENDS, Contender, Nothing, Ours, Start, configure, others, start
from .models import Batch, Gpt
from .pairs import take_turns
from .plan import Plan, count_parameters, subject
from .report import Result, Row, losses
from .training import Training, forward_of

_EVERY = 4
_WITH_HISTOGRAMS = (".item() to a list", "TensorBoard SummaryWriter", "wandb.log (offline)")


def run(plan: Plan) -> Result:
    """Measure what logging every gradient adds to a step."""
    if plan.quick:
        model, size, length = Gpt(64, 32, 5, 2, 16), 2, 16
    elif plan.device == "cpu":
        model, size, length = Gpt(3072, 384, 5, 6, 128), 2, 128
    else:
        model, size, length = Gpt(50257, 768, 12, 12, 1024), 8, 1024
    model = model.to(plan.device)
    millions, gradients = count_parameters(model) / 1e6, len(list(model.parameters()))
    result = Result(
        "b",
        f"A GPT of {millions:.0f}M parameters, 10 scalars and {gradients} gradient histograms a step",
        {"vs untracked": ".2f", "added ms a step": ",.1f", "vs untracked, all written": ".2f"},
        series={"plot": "gpt"},
    )
    with start(_wanted(plan)) as (contenders, missing):
        batch = model.batch(plan.device, size, length)
        trainings = [_training(plan, contender, model, batch) for contender in contenders]
        names = [contender.name for contender in contenders]
        found = take_turns(
            {training.contender.name: subject(training, _EVERY) for training in trainings},
            subject(_training(plan, Nothing(), model, batch), _EVERY),
            turns=2 if plan.quick else 8,
            windows=1,
            device=plan.device,
        )
    for contender, name in zip(contenders, names, strict=True):
        cells = {
            "vs untracked": found[name].ratio(),
            "added ms a step": found[name].added().scaled(1e3),
            "vs untracked, all written": found[name].ratio(settled=True),
        }
        result.rows.append(Row(contender.name, contender.kind, dict(cells), _note(contender)))
    result.missing = missing
    untracked = found[Nothing.name].neighbour
    milliseconds = sum(untracked) / len(untracked) * 1e3
    result.remarks = [
        f"Batch {size} by {length} tokens; the untracked step takes {milliseconds:,.0f} ms. d9d_tracker counts every "
        f"element of every step's gradients and writes one histogram per window, here of {_EVERY} steps; the others "
        "write one per step.",
        "Left out because they have no histograms: torch.stack, d9d's writer, torchmetrics, Lightning Fabric.",
    ]
    result.remarks += losses(
        result.rows,
        "vs untracked",
        "d9d_tracker → null",
        "They count 64 bins between min and max; d9d_tracker counts 2048 exponential ones, with exact moments, "
        "zeros and non-finite values.",
    )
    if plan.device == "cpu":
        result.remarks.append(
            "On a CPU a histogram competes with the model for the same cores and memory; on a GPU it is another "
            "workload, so this figure does not carry over."
        )
    return result


def _wanted(plan: Plan) -> dict[str, Start]:
    all_others = others(plan.folder, plan.device)
    wanted: dict[str, Start] = {Nothing.name: Nothing, **{name: all_others[name] for name in _WITH_HISTOGRAMS}}
    few = ("null", "jsonl", "tensorboard")
    for backend in few[:2] if plan.quick else BACKENDS if plan.device == "cpu" else few:
        wanted[f"d9d_tracker → {backend}"] = lambda backend=backend: _ours(plan, backend, _EVERY)
    wanted["d9d_tracker → jsonl, a window a step"] = lambda: _ours(plan, "jsonl", 1)
    return wanted


def _training(plan: Plan, contender: Contender, model: Gpt, batch: Batch) -> Training:
    own = copy.deepcopy(model)  # because watching leaves hooks on it
    forward = forward_of(own, contender, backend=plan.backend, bfloat16=plan.device == "cuda")
    return Training(contender, own, batch, forward, gradients=contender.tracks)


def _ours(plan: Plan, backend: str, every: int) -> Contender:
    name = f"d9d_tracker → {backend}" + ", a window a step" * (every == 1)
    return Ours(configure(backend, plan.folder / f"gpt-{backend}-{every}", plan.device, every), name)


def _note(contender: Contender) -> str:
    notes = {
        ".item() to a list": "torch.histc with 64 bins between min and max",
        "TensorBoard SummaryWriter": "copies every gradient to the host and bins it there",
        "wandb.watch + wandb.log (offline)": f"64 bins between min and max, in backward hooks; {contender.note}",
        "d9d_tracker → jsonl, a window a step": "one histogram written per step, like the others",
    }
    return notes.get(contender.name, contender.note)
