"""Run the demo and note, on every rank, each scalar as it is logged. Arguments: folder, number of steps."""

import json
import os
import sys
from pathlib import Path

from d9d_tracker import AccumulatingRun
from d9d_tracker.commands.demo import load

demo, folder, steps = load(), Path(sys.argv[1]), int(sys.argv[2])
notes = []
set_step, set_context, scalars = AccumulatingRun.set_step, AccumulatingRun.set_context, AccumulatingRun.scalars
at = {"step": 0, "stage": ""}


def note_step(self, step):
    at["step"] = step
    set_step(self, step)


def note_context(self, context):
    at["stage"] = context["stage"]
    set_context(self, context)


def note_scalars(self, values, *args, **kwargs):
    notes.extend([name, at["stage"], at["step"], float(value)] for name, value in values.items())
    scalars(self, values, *args, **kwargs)


AccumulatingRun.set_step, AccumulatingRun.set_context, AccumulatingRun.scalars = note_step, note_context, note_scalars
demo.shutil.which = lambda name: None  # no compiler: eager code is noted call by call
demo.main("jsonl", steps, folder / "runs")
(folder / f"notes-{os.environ['RANK']}.json").write_text(json.dumps(notes))
