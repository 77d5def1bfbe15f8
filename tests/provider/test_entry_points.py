"""A backend of another package, built and installed, works by its name alone."""

import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import TypeAdapter, ValidationError

from d9d_tracker.factory import AnyTrackerConfig

FILES = {
    "pyproject.toml": """
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"

[project]
name = "file-tracker"
version = "1.0"

[project.entry-points."d9d_tracker.providers"]
file = "file_tracker:PROVIDER"
broken = "file_tracker:MISSING"
foreign = "file_tracker:FileConfig"
null = "file_tracker:PROVIDER"
""",
    "file_tracker/__init__.py": """
from typing import Literal

from d9d_tracker import TrackerConfig
from d9d_tracker.provider.entry_points import Provider


class FileConfig(TrackerConfig):
    provider: Literal["file"] = "file"
    path: str


PROVIDER = Provider(config=FileConfig, tracker="file_tracker.tracker:FileTracker")
""",
    "file_tracker/tracker.py": """
from contextlib import contextmanager

from d9d_tracker import BaseTracker, BaseTrackerRun, Histogram


class FileRun(BaseTrackerRun):
    def __init__(self, file):
        self.file, self.step, self.context = file, 0, {}

    def set_step(self, step):
        self.step = step

    def set_context(self, context):
        self.context = context

    def scalar(self, name, value, context=None):
        print(self.step, name, float(value), file=self.file)

    def bins(self, name, values, context=None):
        self.histogram(name, Histogram.from_values(values), context)


class FileTracker(BaseTracker):
    def __init__(self, path):
        self.path = path

    @classmethod
    def from_config(cls, config):
        return cls(config.path)

    @contextmanager
    def open(self, properties):
        self.run_id = properties.name
        with open(self.path, "w") as file:
            yield FileRun(file)
""",
}

SCRIPT = """
import json, sys
from pydantic import TypeAdapter
from d9d_tracker import AnyTrackerConfig, RunConfig, tracker_from_config

adapter = TypeAdapter(AnyTrackerConfig)
config = adapter.validate_json(json.dumps({"provider": "file", "path": "out", "accumulator": {"device": "cpu"}}))
assert "file_tracker.tracker" not in sys.modules
assert adapter.validate_json(adapter.dump_json(config)) == config
with tracker_from_config(config).open(RunConfig(name="theirs")) as run:
    for step in range(3):
        run.set_step(step)
        run.scalar("loss", step)

both = {"provider": "multi", "trackers": [{"provider": "file", "path": "also"}, {"provider": "null"}]}
config = adapter.validate_python({**both, "accumulator": {"device": "cpu"}})
assert adapter.validate_json(adapter.dump_json(config)) == config, adapter.dump_json(config)
with tracker_from_config(config).open(RunConfig(name="both")) as run:
    run.scalar("loss", 7)

assert type(adapter.validate_python({"provider": "null"})).__module__ == "d9d_tracker.provider.null"
for name, kind, words in [("broken", ImportError, "MISSING"), ("foreign", TypeError, "file_tracker:FileConfig")]:
    try:
        adapter.validate_python({"provider": name})
    except kind as error:
        assert name in str(error) and words in str(error), error
    else:
        raise AssertionError(name)
try:
    adapter.validate_python({"provider": "file"})
except ValueError as error:
    assert "path" in str(error), error
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that pip has installed the package into."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("installed")
    for name, text in FILES.items():
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_text(text)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--disable-pip-version-check", "--target", str(target), str(source)], check=True)
    return target


def test_an_installed_package_brings_its_backend(installed: Path, tmp_path: Path) -> None:
    path = ":".join([str(installed), *(part for part in sys.path if part)])
    subprocess.run([sys.executable, "-c", SCRIPT], env={"PYTHONPATH": path}, cwd=tmp_path, check=True)
    assert (tmp_path / "out").read_text() == "0 loss 0.0\n1 loss 1.0\n2 loss 2.0\n"
    assert (tmp_path / "also").read_text() == "0 loss 7.0\n"


def test_a_name_that_nobody_registers_is_refused_with_what_there_is() -> None:
    with pytest.raises(ValidationError, match=r"'nobody'.*'jsonl'"):
        TypeAdapter(AnyTrackerConfig).validate_python({"provider": "nobody"})
