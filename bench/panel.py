"""(p) The instrument panel, all of it, in a compiled MLP step with one scalar: beside the same step without it."""

import itertools
from pathlib import Path

from .contenders import EVERY, Ours, Start, configure, start
from .models import Mlp
from .pairs import take_turns
from .plan import Plan, subject
from .report import Result, Row
from .training import Training, forward_of

_TURNS = 24
_WINDOWS = 4
_WITHOUT, _WITH = "without it, beside itself", "with it"


class Panel(Ours):
    """``run.monitor()``, a block around the step, the wait for its batch, and a rate."""

    def __init__(self, folder: Path, device: str):
        super().__init__(configure("null", folder, device), _WITH)
        self.run.monitor()
        self._data = iter(self.run.timed(itertools.repeat(None)))

    def set_step(self, step: int) -> None:
        next(self._data)
        self.run.set_step(step)
        self._block = self.run.time("train")
        self._block.__enter__()

    def end_step(self) -> None:
        self._block.__exit__(None, None, None)
        self.run.rate("tokens", 4096)


def run(plan: Plan) -> Result:
    """Measure what the panel adds to a step that logs."""
    folder, device = plan.folder, plan.device
    without = lambda: Ours(configure("null", folder, device), _WITHOUT)  # noqa: E731 - as short as its name
    wanted: dict[str, Start] = {_WITHOUT: without, _WITH: lambda: Panel(folder, device)}
    model = Mlp(1).to(device)
    batch = model.batch(device)
    result = Result(
        "p",
        "The instrument panel: time of the step, of a block and of the wait for data, a rate, memory, the machine",
        {"vs without": ".4f", "added µs a step": ",.1f", "vs without, all written": ".3f"},
    )
    with start({"before": without, **wanted}) as (contenders, missing):
        trainings = [
            Training(contender, model, batch, forward_of(model, contender, backend=plan.backend))
            for contender in contenders
        ]
        baseline, *others = [subject(training, EVERY) for training in trainings]
        found = take_turns(
            dict(zip(wanted, others, strict=True)),
            baseline,
            turns=2 if plan.quick else _TURNS,
            windows=1 if plan.quick else _WINDOWS,
            device=device,
        )
    for contender in contenders[1:]:
        pairs = found[contender.name]
        cells = {
            "vs without": pairs.ratio(),
            "added µs a step": pairs.added().scaled(1e6),
            "vs without, all written": pairs.ratio(settled=True),
        }
        result.rows.append(Row(contender.name, contender.kind, dict(cells), contender.note))
    result.missing = missing
    return result
