"""From data to a tracker, and a new backend in three pieces and a line."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, Self, cast

import pytest
import torch
import yaml
from pydantic import TypeAdapter, ValidationError

import d9d_tracker
from d9d_tracker import factory
from d9d_tracker.accumulator import AccumulatingTracker
from d9d_tracker.base import BaseTracker, BaseTrackerRun, RunConfig
from d9d_tracker.config import TrackerConfig
from d9d_tracker.factory import AnyTrackerConfig, register_backend, tracker_from_config
from d9d_tracker.provider.aim import AimConfig
from d9d_tracker.provider.console import ConsoleTracker, ConsoleTrackerConfig
from d9d_tracker.provider.jsonl import JsonlTracker, JsonlTrackerConfig
from d9d_tracker.provider.multi import MultiConfig
from d9d_tracker.provider.null import NullTracker, NullTrackerConfig

ADAPTER = TypeAdapter[TrackerConfig](AnyTrackerConfig)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({"provider": "null"}, NullTrackerConfig()),
        ({"provider": "console", "log_every": 1}, ConsoleTrackerConfig(log_every=1)),
        ({"provider": "jsonl", "path": "runs"}, JsonlTrackerConfig.model_validate({"path": "runs"})),
        ({"provider": "aim", "repo": "r", "accumulator": None}, AimConfig(repo="r", accumulator=None)),
    ],
)
def test_data_picks_the_config(data: dict[str, Any], expected: TrackerConfig) -> None:
    assert ADAPTER.validate_python(data) == expected
    assert ADAPTER.validate_json(expected.model_dump_json()) == expected
    assert ADAPTER.validate_python(yaml.safe_load(yaml.safe_dump(data))) == expected


@pytest.mark.parametrize("data", [{}, {"provider": "nul"}, {"provider": "null", "extra": 1}, {"provider": "jsonl"}])
def test_wrong_data_is_refused(data: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ADAPTER.validate_python(data)


@pytest.mark.parametrize(
    ("config", "tracker_type"),
    [
        (NullTrackerConfig(accumulator=None), NullTracker),
        (ConsoleTrackerConfig(accumulator=None), ConsoleTracker),
        (JsonlTrackerConfig.model_validate({"path": "runs", "accumulator": None}), JsonlTracker),
    ],
)
def test_no_accumulator_gives_the_bare_backend(config: TrackerConfig, tracker_type: type[BaseTracker[Any]]) -> None:
    assert type(tracker_from_config(config)) is tracker_type


def test_aim_is_loaded_by_name() -> None:
    from d9d_tracker.provider.aim.tracker import AimTracker

    assert type(tracker_from_config(AimConfig(repo="r", accumulator=None))) is AimTracker


def test_accumulation_is_on_by_default() -> None:
    assert type(tracker_from_config(NullTrackerConfig())) is AccumulatingTracker


def test_torch_and_an_sdk_are_imported_only_when_chosen() -> None:
    script = "import sys, d9d_tracker.factory; sys.exit(bool({'aim', 'torch'} & set(sys.modules)))"
    environment = {"PYTHONPATH": ":".join(path for path in sys.path if path)}
    subprocess.run([sys.executable, "-c", script], env=environment, check=True)


def test_a_missing_sdk_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "d9d_tracker.provider.aim.tracker", raising=False)
    monkeypatch.setitem(sys.modules, "aim", None)
    with pytest.raises(ImportError, match=r"provider 'aim'.*pip install 'd9d_tracker\[aim\]'"):
        tracker_from_config(AimConfig(repo="r"))


def test_an_unknown_config_is_refused() -> None:
    class OtherConfig(TrackerConfig):
        pass

    with pytest.raises(TypeError, match=r"OtherConfig.*known are NullTrackerConfig"):
        tracker_from_config(OtherConfig())


def test_unvalidated_data_is_told_the_way() -> None:
    with pytest.raises(TypeError, match=r"TypeAdapter\(AnyTrackerConfig\)\.validate_python"):
        tracker_from_config(cast(Any, {"provider": "null"}))


def test_the_bare_word_off_of_yaml_is_understood() -> None:
    config = ADAPTER.validate_python(yaml.safe_load("{provider: console, accumulator: {distributed: off}}"))
    assert config.accumulator is not None
    assert config.accumulator.distributed == "off"


def test_an_unknown_device_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"'gpu' is no torch device; use 'auto', 'cpu' or 'cuda:0'"):
        ADAPTER.validate_python({"provider": "null", "accumulator": {"device": "gpu"}})


def test_a_new_backend_that_cannot_be_imported_blames_no_extra() -> None:
    register_backend(ListConfig, "no_such_package:Tracker")
    with pytest.raises(ImportError, match=r"^No module named 'no_such_package'$"):
        tracker_from_config(ListConfig())


class ListConfig(TrackerConfig):
    provider: Literal["list"] = "list"


class ListRun(BaseTrackerRun):
    def __init__(self) -> None:
        self.values: list[Any] = []
        self.step = 0
        self.context: dict[str, str] = {}

    def set_step(self, step: int) -> None:
        self.step = step

    def set_context(self, context: dict[str, str]) -> None:
        self.context = context

    def scalar(self, name: str, value: float | torch.Tensor, context: dict[str, str] | None = None) -> None:
        self.values.append((name, self.step, {**self.context, **(context or {})}, float(value)))

    def bins(self, name: str, values: torch.Tensor, context: dict[str, str] | None = None) -> None:
        self.values.append((name, self.step, {**self.context, **(context or {})}, values.numel()))


class ListTracker(BaseTracker[ListConfig]):
    def __init__(self) -> None:
        self.run = ListRun()

    @classmethod
    def from_config(cls, config: ListConfig) -> Self:
        return cls()

    @contextmanager
    def open(self, properties: RunConfig) -> Iterator[ListRun]:
        yield self.run


@pytest.fixture(autouse=True)
def _backends_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(factory, "_MAP", dict(factory._MAP))


@pytest.mark.parametrize("entry", [ListTracker, f"{__name__}:ListTracker"])
def test_a_new_backend_is_one_line(entry: Any) -> None:
    register_backend(ListConfig, entry)
    tracker = tracker_from_config(ListConfig(accumulator=None))
    assert isinstance(tracker, ListTracker)
    with tracker.open(RunConfig(name="mine")) as run:
        run.set_step(1)
        run.scalar("loss", 1, {"stage": "train"})
    assert tracker.run.values == [("loss", 1, {"stage": "train"}, 1.0)]


def test_a_registered_backend_is_known_to_data() -> None:
    register_backend(ListConfig, ListTracker)
    data = {"provider": "list", "accumulator": {"sync_every": 7}}
    config = ADAPTER.validate_python(data)
    assert type(config) is ListConfig
    assert ADAPTER.validate_json(config.model_dump_json()) == config
    inside = ADAPTER.validate_python({"provider": "multi", "trackers": [{"provider": "list"}]})
    assert isinstance(inside, MultiConfig)
    assert [type(part) for part in inside.trackers] == [ListConfig]
    with pytest.raises(ValidationError, match="no_such_field"):
        ADAPTER.validate_python({"provider": "list", "no_such_field": 1})


def test_registering_a_name_again_replaces_it() -> None:
    class NewListConfig(TrackerConfig):
        provider: Literal["list"] = "list"

    for config in (ListConfig, NewListConfig):
        register_backend(config, ListTracker)
        assert type(ADAPTER.validate_python({"provider": "list"})) is config
    with pytest.raises(TypeError, match="no backend"):
        tracker_from_config(ListConfig())


def test_a_backend_without_a_name_of_its_own_is_refused() -> None:
    class Nameless(TrackerConfig):
        pass

    class Jsonl(TrackerConfig):
        provider: Literal["jsonl"] = "jsonl"

    with pytest.raises(ValueError, match="Nameless does not name its provider"):
        register_backend(Nameless, ListTracker)
    with pytest.raises(ValueError, match="'jsonl' comes with d9d_tracker; choose another"):
        register_backend(Jsonl, ListTracker)


def test_importing_the_package_imports_nothing_heavy():
    def printed(program):
        return subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=True
        ).stdout.split()

    new = "import torch, sys; before = set(sys.modules); import d9d_tracker; print(*(set(sys.modules) - before))"
    assert [name for name in printed(new) if not name.startswith(("d9d_tracker", "importlib"))] == []
    assert printed("from d9d_tracker import *; print(Record, tracker_from_config, AccumulatingTracker)")
    eager = """
import sys
from d9d_tracker import *
tracker = tracker_from_config(NullTrackerConfig(accumulator=AccumulatorConfig(device="cpu")))
with tracker.open(RunConfig(name="run")) as run:
    run.set_step(1)
    run.scalar("loss", 1.0)
try:
    run.flush()
except TrackerValueError:
    print(*sys.modules)
"""
    assert not {"torch._dynamo", "torch.distributed.tensor", "triton"} & set(printed(eager))
    show = """
import sys
from d9d_tracker import Histogram, JsonlTrackerConfig, MLflowConfig, Record, RecordTracker, TrackerConfig, read
import d9d_tracker.__main__
print(*sys.modules)
"""
    assert "torch" not in printed(show)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = d9d_tracker.nothing
