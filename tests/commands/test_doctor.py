"""The doctor knows what may be installed, and shows what `check_step` finds."""

import importlib.util
import io
import tomllib
from pathlib import Path

import pytest
import rich
import torch
from rich.console import Console

from d9d_tracker.__main__ import main
from d9d_tracker.commands import doctor
from d9d_tracker.commands.doctor import EXTRAS


def test_the_doctor_knows_every_extra():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    assert set(EXTRAS) == set(extras) - {"bench", "dev", "docs"}
    for extra, names in EXTRAS.items():
        assert any(name in requirement for name in names for requirement in extras[extra])


def test_the_doctor_prints_its_table_and_passes(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    terminal = Console(file=io.StringIO(), force_terminal=True)
    monkeypatch.setattr(rich, "_console", terminal)
    monkeypatch.setattr("d9d_tracker.commands.doctor.EXTRAS", {"pandas": ("no package of this name",)})
    assert main(["doctor"]) == 0
    printed = capsys.readouterr().out
    compiled = "graph breaks", "recompiles", "host syncs", "kernels added"
    for row in ("torch", "bank", "extra pandas", *compiled):
        assert row in printed
    assert "pass" in printed
    assert "fail" not in printed
    assert "pip install 'd9d_tracker[pandas]'" in printed, "brackets are no markup"
    assert terminal.file.getvalue() == "", "nobody asked what became of the run of the check"


@pytest.mark.parametrize(
    ("device", "why"), [("mps", "there are no kernels for mps"), ("cuda", "triton is not installed")]
)
def test_a_machine_without_kernels_is_told_which_bank_it_gets_and_why(device, why, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setattr(doctor, "device_of", lambda name: torch.device(device, 0))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    assert main(["doctor"]) == 0
    printed = capsys.readouterr().out
    assert f"plain, on the host, for values on {device}:0, because {why}: one wait a window" in printed
    assert "graph breaks" not in printed
