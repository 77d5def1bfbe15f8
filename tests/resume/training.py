"""A training that can be killed at any moment: deterministic, compiled, checkpointed, logged to one backend.

Run by the crash harness in processes forked from ``fork_server.py``, which has paid for the imports.
"""

import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from faults import plant
from pydantic import TypeAdapter

from d9d_tracker import AnyTrackerConfig, RunConfig, tracker_from_config
from d9d_tracker.accumulator import AccumulatingTracker

STEPS = 120
CHECKPOINT_EVERY = 7
LATE = 3
FLUSH_AT = (23, 24, 88)  # in the middle of the step, so that windows end early and steps are written in parts


def train(folder: Path, config: dict[str, Any], faults: list[str], end: tuple[int, int] | None) -> None:
    """Train to the end, from the last checkpoint if there is one.

    Args:
        folder: Holds the checkpoint, the progress, and what the backend writes.
        config: The tracker's configuration, as JSON.
        faults: Names of functions in the module ``faults``.
        end: A step, and the signal that the process sends itself in it. None: it trains to the end.
    """
    plant(faults)
    progress = os.open(folder / "progress", os.O_WRONLY | os.O_CREAT)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(f"terminated in step {step}"))
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    tracker = tracker_from_config(TypeAdapter(AnyTrackerConfig).validate_python(config))
    assert isinstance(tracker, AccumulatingTracker)
    checkpoint, first = folder / "checkpoint.pt", 0
    step = first
    if checkpoint.exists():
        loaded = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(loaded["model"])
        optimizer.load_state_dict(loaded["optimizer"])
        tracker.load_state_dict(loaded["tracker"])
        first = loaded["step"]

    with tracker.open(RunConfig(name="killed", hparams={"steps": STEPS})) as run:
        (folder / "run_id").write_text(str(tracker.run_id))

        def save(step: int) -> None:
            parts = {"model": model, "optimizer": optimizer, "tracker": tracker}
            state = {"step": step, **{name: part.state_dict() for name, part in parts.items()}}
            torch.save(state, folder / "checkpoint.new")
            (folder / "checkpoint.new").replace(checkpoint)

        save(first)

        # With one backend by Inductor: what is compiled is the same for all, and a life compiles it anew.
        @torch.compile(fullgraph=True, backend="inductor" if config["provider"] == "jsonl" else "eager")
        def forward(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            hidden = model[1](model[0](x))
            loss = (model[2](hidden) - y).square().mean()
            run.scalar("loss", loss)
            run.scalar("hidden", hidden.sum(), {"part": "forward"}, reduce="sum")
            run.bins("activations", hidden)
            return loss

        for step in range(first, STEPS):
            run.set_step(step)
            data = torch.Generator().manual_seed(step)
            for batch in range(2):
                x = torch.randn(32, 8, generator=data)
                loss = forward(x, x.sum(1, keepdim=True))
                loss.backward()
                run.scalar("tokens", step + batch, reduce="sum", scope="spread")
                run.log_at(step, {"finished": step + batch})  # of both, the last one stands
                if batch == 0 and step in FLUSH_AT:
                    run.flush()
            if step >= LATE:
                run.log_at(step - LATE, {"late": step})  # often in a window that has left
            run.bins("gradients", model[0].weight.grad)
            run.scalar("last", step, reduce="last")
            if step % 10 == 0:
                run.scalar("rare", loss.detach() * 2, {"part": "rare"})
            optimizer.step()
            optimizer.zero_grad()
            os.pwrite(progress, b"%8d" % step, 0)
            if end is not None and step == end[0]:
                signal.raise_signal(end[1])
            if (step + 1) % CHECKPOINT_EVERY == 0:
                save(step + 1)
    assert not tracker.report.undelivered, tracker.report
    assert not tracker.report.failures or "outage" in faults, tracker.report
