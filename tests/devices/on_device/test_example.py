"""The loop to copy from runs on any device."""

import functools
import runpy
from pathlib import Path

import pytest
import torch
from devices import device, plugin

from d9d_tracker import read


def test_the_plain_loop(tmp_path, monkeypatch):
    pytest.importorskip("sklearn")
    examples = Path(__file__).parents[3] / "examples"
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(examples))  # as for a script that is run there
    if plugin.NAME == device.NAME:  # for which torch generates no code
        monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    with torch.device("cpu"):  # data and generators are the host's, as in a script
        main = runpy.run_path(str(examples / "plain_loop.py"))["main"]
        main("runs", steps=60, device_name=plugin.NAME)
    (run,) = read("runs")
    assert len(run.scalars("loss", {"stage": "train"}).steps) == 60
    assert run.scalars("loss", {"stage": "train"}).values[-1] < run.scalars("loss", {"stage": "train"}).values[0]
    assert {"logits", "gradients/0.weight", "parameters/2.bias"} <= {series.name for series in run.series()}
