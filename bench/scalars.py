"""(a) A compiled MLP step with 1, 10 and 100 scalars."""

from .contenders import BACKENDS, EVERY, Contender, Nothing, others, ours, start
from .interleave import Timing, interleave
from .models import Mlp
from .plan import Plan, subject
from .report import Result, Row, losses
from .training import Training, forward_of

_ROUNDS = 5
_WINDOWS = 4
_ROUND_SECONDS = 1.0


def run(plan: Plan) -> Result:
    """Measure what logging adds to a step."""
    result = Result(
        "a",
        "A compiled MLP step with 1, 10 and 100 scalars",
        {"vs untracked": ".2f", "added µs a step": ",.0f", "vs untracked, all written": ".2f"},
        series={"plot": "scalars"},
    )
    for scalars in (4,) if plan.quick else (1, 10, 100):
        backends = BACKENDS if scalars == 10 else ("null", "jsonl")
        wanted = {**others(plan.folder, plan.device), **ours(plan.folder, plan.device, backends)}
        with start({Nothing.name: Nothing, **wanted}) as (contenders, missing):
            timings = _measure(plan, contenders, scalars)
        result.missing |= missing
        baseline = timings[Nothing.name]
        for contender in contenders:
            timing = timings[contender.name]
            cells = {
                "vs untracked": timing.ratio(baseline),
                "added µs a step": timing.added(baseline).scaled(1e6),
                "vs untracked, all written": timing.ratio(baseline, settled=True),
            }
            group = f"{scalars} scalar{'s' * (scalars > 1)}"
            result.rows.append(Row(contender.name, contender.kind, dict(cells), contender.note, group))
        result.series[f"untracked µs, {scalars}"] = sum(baseline.loop) / len(baseline.loop) * 1e6
    result.remarks = _remarks(plan) + losses(
        result.rows,
        "vs untracked",
        "d9d_tracker → null",
        "They keep a value as it comes; d9d_tracker merges it into six numbers a series, files a row a step, "
        "and turns windows into records on a thread.",
    )
    return result


def _measure(plan: Plan, contenders: list[Contender], scalars: int) -> dict[str, Timing]:
    model = Mlp(scalars).to(plan.device)
    batch = model.batch(plan.device)
    returning = forward_of(model, Contender(), backend=plan.backend)
    trainings = []
    for contender in contenders:
        shares = contender.tracks and not contender.inside
        forward = returning if shares else forward_of(model, contender, backend=plan.backend)
        trainings.append(Training(contender, model, batch, forward))
    return interleave(
        {training.contender.name: subject(training, EVERY, 1 if plan.quick else _WINDOWS) for training in trainings},
        rounds=3 if plan.quick else _ROUNDS,
        round_seconds=0.1 if plan.quick else _ROUND_SECONDS,
        device=plan.device,
    )


def _remarks(plan: Plan) -> list[str]:
    remarks = [
        f"A step is forward, backward and AdamW; a sample is {_WINDOWS} windows of {EVERY} steps. The untracked step "
        "neither computes nor returns the values. Figures are medians of the ratio to the untracked step of the same "
        "round, with quartiles.",
        "Until all is written: the loop, and then waiting for background threads (and files) to finish.",
    ]
    if plan.device == "cpu":
        remarks.append(
            "On a CPU there is no GPU to wait for, so this table cannot show what .item() costs there; it shows the "
            "host's work, which includes background threads that share the cores and the interpreter with the loop."
        )
    return remarks
