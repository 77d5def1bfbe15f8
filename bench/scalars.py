"""(a) A compiled MLP step with 1, 10 and 100 scalars."""

from .contenders import BACKENDS, ELSEWHERE, EVERY, Contender, Nothing, others, ours, start
from .models import Mlp
from .pairs import Pairs, take_turns
from .plan import Plan, subject
from .report import Result, Row, losses
from .training import Training, forward_of

_TURNS = 20
_WINDOWS = 2


def run(plan: Plan) -> Result:
    """Measure what logging adds to a step."""
    result = Result(
        "a",
        "A compiled MLP step with 1, 10 and 100 scalars",
        {"vs untracked": ".3f", "added µs a step": ",.0f", "vs untracked, all written": ".2f"},
        series={"plot": "scalars"},
    )
    for scalars in (4,) if plan.quick else (1, 10, 100):
        backends, elsewhere = (BACKENDS, ELSEWHERE) if scalars == 10 else (("null", "jsonl"), ())
        wanted = {**others(plan.folder, plan.device), **ours(plan.folder, plan.device, backends, elsewhere)}
        with start({Nothing.name: Nothing, **wanted}) as (contenders, missing):
            found = _measure(plan, contenders, scalars)
        result.missing |= missing
        for contender in contenders:
            pairs = found[contender.name]
            cells = {
                "vs untracked": pairs.ratio(),
                "added µs a step": pairs.added().scaled(1e6),
                "vs untracked, all written": pairs.ratio(settled=True),
            }
            group = f"{scalars} scalar{'s' * (scalars > 1)}"
            result.rows.append(Row(contender.name, contender.kind, dict(cells), contender.note, group))
        untracked = found[Nothing.name].neighbour
        result.series[f"untracked µs, {scalars}"] = sum(untracked) / len(untracked) * 1e6
    result.remarks = _remarks(plan) + losses(
        result.rows,
        "vs untracked",
        "d9d_tracker → null",
        "They keep a value as it comes; d9d_tracker merges it into six numbers a series, files a row a step, "
        "and turns windows into records on a thread.",
    )
    return result


def _measure(plan: Plan, contenders: list[Contender], scalars: int) -> dict[str, Pairs]:
    model = Mlp(scalars).to(plan.device)
    batch = model.batch(plan.device)
    untracked = forward_of(model, Nothing(), backend=plan.backend)
    returning = forward_of(model, Contender(), backend=plan.backend)
    trainings = []
    for contender in contenders:
        shares = contender.tracks and not contender.inside
        forward = returning if shares else untracked if not contender.tracks else None
        forward = forward or forward_of(model, contender, backend=plan.backend)
        trainings.append(Training(contender, model, batch, forward))
    return take_turns(
        {training.contender.name: subject(training, EVERY) for training in trainings},
        subject(Training(Nothing(), model, batch, untracked), EVERY),
        turns=2 if plan.quick else _TURNS,
        windows=1 if plan.quick else _WINDOWS,
        device=plan.device,
    )


def _remarks(plan: Plan) -> list[str]:
    remarks = [
        f"A step is forward, backward and AdamW. {_TURNS} turns of {_WINDOWS} windows of {EVERY} steps, each beside "
        "one of the untracked step, which neither computes nor returns the values. Figures are medians over the pairs, "
        "with the bootstrap interval of 95 %.",
        f'"{Nothing.name}" is the untracked step against itself: what its row is away from 1 the figures cannot see.',
        "Until all is written: the loop, and then waiting for background threads (and files) to finish.",
    ]
    if plan.device == "cpu":
        remarks.append(
            "On a CPU there is no GPU to wait for, so this table cannot show what .item() costs there; it shows the "
            "host's work, which includes background threads that share the interpreter with the loop. torch has all "
            "cores but one (--threads), as a loop that feeds a GPU leaves some idle; what runs in a process of its own "
            "has that one."
        )
    return remarks
