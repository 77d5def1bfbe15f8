"""The doctor knows what may be installed, and shows what `check_step` finds."""

import tomllib
from pathlib import Path

from d9d_tracker.__main__ import main
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
    monkeypatch.setattr("d9d_tracker.commands.doctor.EXTRAS", {"pandas": ("no package of this name",)})
    assert main(["doctor"]) == 0
    printed = capsys.readouterr().out
    compiled = "graph breaks", "recompiles", "host syncs", "kernels added"
    for row in ("torch", "bank", "extra pandas", *compiled):
        assert row in printed
    assert "pass" in printed
    assert "fail" not in printed
    assert "pip install 'd9d_tracker[pandas]'" in printed, "brackets are no markup"
