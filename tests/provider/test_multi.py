"""Several backends at once: all get everything, and one that fails holds up no other."""

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from d9d_tracker import AnyTrackerConfig, RunConfig, factory, tracker_from_config
from d9d_tracker.accumulator import AccumulatingTracker
from d9d_tracker.bare_run import BareRun
from d9d_tracker.config import AccumulatorConfig, TrackerConfig
from d9d_tracker.provider.jsonl import JsonlRun, JsonlTracker, JsonlTrackerConfig
from d9d_tracker.provider.multi import MultiConfig, MultiTracker
from d9d_tracker.record import Histogram, Record
from d9d_tracker.testing import RecordingRun, RecordingTracker
from tests.run_files import read_run


class OtherConfig(TrackerConfig):
    provider: Literal["other"] = "other"


class OtherTracker(RecordingTracker):
    """A recording backend that can be down: it raises, hangs or cannot be opened."""

    trouble: Callable[[str], None] = staticmethod(lambda call: None)

    def open(self, properties: RunConfig) -> Any:
        OtherTracker.trouble("open")
        return super().open(properties)


@pytest.fixture
def other(monkeypatch: pytest.MonkeyPatch) -> type[OtherTracker]:
    monkeypatch.setitem(factory._MAP, OtherConfig, OtherTracker)
    monkeypatch.setattr(OtherTracker, "trouble", staticmethod(lambda call: None))
    flush = RecordingRun.flush

    def troubled(run: RecordingRun) -> None:
        OtherTracker.trouble("flush")
        flush(run)

    monkeypatch.setattr(RecordingRun, "flush", troubled)
    return OtherTracker


def make(tmp_path: Path, **accumulator: Any) -> AccumulatingTracker:
    settings = {"device": "cpu", "sync_every": 2, "backlog_dir": tmp_path / "backlog", "flush_timeout": 5.0}
    tracker = tracker_from_config(
        MultiConfig(
            trackers=[JsonlTrackerConfig(path=tmp_path / "runs"), OtherConfig()],
            accumulator=AccumulatorConfig(**{**settings, **accumulator}),
        )
    )
    assert isinstance(tracker, AccumulatingTracker)
    return tracker


def inner(tracker: AccumulatingTracker) -> MultiTracker:
    assert isinstance(tracker._tracker, MultiTracker)
    return tracker._tracker


def recorded(tracker: AccumulatingTracker) -> RecordingRun:
    (recording,) = [part for part in inner(tracker).backends().values() if isinstance(part, RecordingTracker)]
    return recording.run


def lines(tmp_path: Path) -> dict[int, float]:
    (path,) = (tmp_path / "runs").glob("*.jsonl")
    return {r.step: r.value for r in read_run(path)[1] if r.name == "loss" and not isinstance(r.value, Histogram)}


def log(run: Any, steps: range) -> None:
    for step in steps:
        run.set_step(step)
        run.scalar("loss", torch.tensor(float(step)))
        run.bins("grad", torch.arange(4.0))


EXPECTED = {step: float(step) for step in range(10)}


def test_every_backend_gets_everything(tmp_path: Path, other: type[OtherTracker]) -> None:
    tracker = make(tmp_path)
    with tracker.open(RunConfig(name="both")) as run:
        log(run, range(10))
        run.flush()
        assert lines(tmp_path) == recorded(tracker).points("loss") == EXPECTED
    assert len(recorded(tracker).histograms("grad")) == 5
    assert tracker.report.delivered == 2 * 15
    assert {name: part.delivered for name, part in tracker.report.parts.items()} == {"0-jsonl": 15, "1-other": 15}


def test_one_that_raises_holds_up_no_other_and_gets_its_backlog_later(
    tmp_path: Path, other: type[OtherTracker], monkeypatch: pytest.MonkeyPatch
) -> None:
    down = True

    def trouble(call: str) -> None:
        if down and call == "flush":
            raise OSError("down")

    monkeypatch.setattr(OtherTracker, "trouble", staticmethod(trouble))
    tracker = make(tmp_path)
    with tracker.open(RunConfig(name="one down")) as run:
        log(run, range(10))
        deadline = time.monotonic() + 20
        while len(lines(tmp_path)) < 8 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert lines(tmp_path) == {step: float(step) for step in range(8)}  # the last window is still on the device
        state = json.loads(tracker.state_dict()["backend"])
        assert list(state["kept"]) == ["1-other"]
        assert state["kept"]["1-other"][0] == 0  # windows that come soon are kept as one
        assert [path.name for path in (tmp_path / "backlog").glob("*.sqlite3")] == [
            f"{state['backlog']}-1-other.sqlite3"
        ]
        down = False
    assert recorded(tracker).points("loss") == EXPECTED
    assert not tracker.report.undelivered
    assert not list((tmp_path / "backlog").glob("*.sqlite3"))


def test_one_that_hangs_holds_up_no_other(
    tmp_path: Path, other: type[OtherTracker], monkeypatch: pytest.MonkeyPatch
) -> None:
    released = threading.Event()
    monkeypatch.setattr(OtherTracker, "trouble", staticmethod(lambda call: released.wait() if call == "flush" else 0))
    tracker = make(tmp_path, flush_timeout=0.5)
    try:
        with tracker.open(RunConfig(name="one hangs")) as run:
            log(run, range(10))
        assert lines(tmp_path) == EXPECTED
        assert tracker.report.parts["0-jsonl"].undelivered == 0
        assert tracker.report.parts["1-other"].undelivered > 0
        with tracker.open(RunConfig(name="the lock of the first run was let go")):
            pass
    finally:
        released.set()


def test_one_that_cannot_be_opened_is_opened_later(
    tmp_path: Path, other: type[OtherTracker], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    down = True

    def trouble(call: str) -> None:
        if down and call == "open":
            raise ConnectionError("nobody there")

    monkeypatch.setattr(OtherTracker, "trouble", staticmethod(trouble))
    tracker = make(tmp_path)
    with tracker.open(RunConfig(name="late")) as run:
        assert "the backend failed: ConnectionError('nobody there') (1-other)" in caplog.text
        log(run, range(8))
        down = False
        log(run, range(8, 10))
    assert lines(tmp_path) == recorded(tracker).points("loss") == EXPECTED


def test_what_one_refuses_the_others_get(
    tmp_path: Path, other: type[OtherTracker], monkeypatch: pytest.MonkeyPatch
) -> None:
    scalar, refused = RecordingRun.scalar, threading.Event()

    def picky(run: RecordingRun, name: str, value: Any, context: dict[str, str] | None = None) -> None:
        if name == "loss":
            refused.set()
            raise ValueError("no loss here")
        scalar(run, name, value, context)

    def late(run: JsonlRun, record: Record) -> None:
        refused.wait(5)
        write(run, record)

    write = JsonlRun.write_record
    monkeypatch.setattr(RecordingRun, "scalar", picky)
    monkeypatch.setattr(JsonlRun, "write_record", late)
    tracker = make(tmp_path)
    with tracker.open(RunConfig(name="picky")) as run:
        log(run, range(10))
    assert lines(tmp_path) == EXPECTED
    assert tracker.report.refused == {"loss": 10}
    assert tracker.report.parts["0-jsonl"].refused == {}
    assert len(recorded(tracker).histograms("grad")) == 5


def test_a_wrong_configuration_is_not_mistaken_for_an_outage(
    tmp_path: Path, other: type[OtherTracker], monkeypatch: pytest.MonkeyPatch
) -> None:
    def trouble(call: str) -> None:
        raise ValueError("no such project")

    monkeypatch.setattr(OtherTracker, "trouble", staticmethod(trouble))
    with pytest.raises(ValueError, match="no such project"), make(tmp_path).open(RunConfig(name="wrong")):
        pass


def test_the_state_carries_every_run(tmp_path: Path, other: type[OtherTracker]) -> None:
    first = make(tmp_path)
    with first.open(RunConfig(name="resumed")) as run:
        log(run, range(5))
        state = first.state_dict()
        log(run, range(5, 8))  # after the checkpoint: to be taken back
    second = make(tmp_path)
    recording = recorded(first)
    (tracker,) = [part for part in inner(second).backends().values() if isinstance(part, RecordingTracker)]
    second.load_state_dict(state)
    assert tracker.resume_id is not None
    tracker.runs[tracker.resume_id] = recording
    with second.open(RunConfig(name="resumed")) as run:
        log(run, range(5, 10))
    assert second.run_id == first.run_id
    assert lines(tmp_path) == recording.points("loss") == EXPECTED
    assert len([record for record in recording.records if record.name == "loss"]) == 10
    assert len(recording.histograms("grad")) == 5


def test_states_of_other_trackers_are_refused(tmp_path: Path, other: type[OtherTracker]) -> None:
    tracker = MultiTracker({"0-other": OtherTracker(), "1-other": OtherTracker()})
    before = tracker.state_dict()
    with pytest.raises(ValueError, match=r"belongs to the trackers 0-jsonl.*0-other, 1-other"):
        tracker.load_state_dict({"run_id": "a", "trackers": {"0-jsonl": {"run_id": "b"}}})
    with pytest.raises(ValueError, match="'run_id'"):
        tracker.load_state_dict({})
    assert tracker.state_dict() == before


def test_configs_of_many_come_from_data(tmp_path: Path) -> None:
    data = {"provider": "multi", "trackers": [{"provider": "jsonl", "path": "runs"}, {"provider": "null"}]}
    config = TypeAdapter[Any](AnyTrackerConfig).validate_python(data)
    assert isinstance(config, MultiConfig)
    assert [type(child).__name__ for child in config.trackers] == ["JsonlTrackerConfig", "NullTrackerConfig"]
    assert json.loads(config.model_dump_json())["trackers"][0]["path"] == "runs"
    for wrong, words in [
        ({"provider": "multi", "trackers": []}, "at least 1"),
        ({"provider": "multi", "trackers": [data]}, "multi within a multi"),
        ({"provider": "multi", "trackers": [{"provider": "null", "accumulator": {}}]}, "accumulate once"),
    ]:
        with pytest.raises(ValidationError, match=words):
            TypeAdapter[Any](AnyTrackerConfig).validate_python(wrong)


def test_bare_all_have_their_turn_before_an_error_surfaces(
    tmp_path: Path, other: type[OtherTracker], monkeypatch: pytest.MonkeyPatch
) -> None:
    def trouble(call: str) -> None:
        if call == "flush":
            raise OSError("down")

    config = MultiConfig(trackers=[OtherConfig(), JsonlTrackerConfig(path=tmp_path / "runs")], accumulator=None)
    tracker = tracker_from_config(config)
    with tracker.open(RunConfig(name="bare")) as run:
        log(run, range(10))
        monkeypatch.setattr(OtherTracker, "trouble", staticmethod(trouble))
        with pytest.raises(OSError, match="down"):
            run.flush()
        assert lines(tmp_path) == EXPECTED
    assert type(run) is BareRun


def test_a_healthy_backend_misses_nothing_when_another_was_down(
    tmp_path: Path, other: type[OtherTracker], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def trouble(call: str) -> None:
        if call == "flush":
            raise OSError("down")

    first = make(tmp_path, flush_timeout=0.2)
    with monkeypatch.context() as patched:
        patched.setattr(OtherTracker, "trouble", staticmethod(trouble))
        with first.open(RunConfig(name="down")) as run:
            log(run, range(7))
            state = first.state_dict()
    recording = recorded(first)
    second = make(tmp_path)
    (tracker,) = [part for part in inner(second).backends().values() if isinstance(part, RecordingTracker)]
    second.load_state_dict(state)
    assert tracker.resume_id is not None
    tracker.runs[tracker.resume_id] = recording
    caplog.clear()
    with second.open(RunConfig(name="down")) as run:
        log(run, range(7, 10))
    assert "missing" not in caplog.text
    assert lines(tmp_path) == recording.points("loss") == EXPECTED


def test_bare_a_rewind_reaches_all(tmp_path: Path, other: type[OtherTracker]) -> None:
    config = MultiConfig(trackers=[OtherConfig(), JsonlTrackerConfig(path=tmp_path / "runs")], accumulator=None)
    tracker = tracker_from_config(config)
    with tracker.open(RunConfig(name="bare")) as run:
        log(run, range(10))
        run.flush()
        run.rewind(4)
        log(run, range(4, 6))
    (recording,) = [part for part in tracker.backends().values() if isinstance(part, RecordingTracker)]
    assert lines(tmp_path) == recording.run.points("loss") == {step: float(step) for step in range(6)}


def test_the_first_that_hangs_does_not_take_the_time_of_the_second(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    released, synced = threading.Event(), threading.Event()

    class Hangs(RecordingTracker):
        def open(self, properties: RunConfig) -> Any:
            context = super().open(properties)
            monkeypatch.setattr(RecordingRun, "flush", lambda run: released.wait())
            return context

    sync = JsonlRun.sync

    def late(run: JsonlRun) -> None:
        synced.wait(0.2)  # nobody sets it: a backend that takes its time
        sync(run)

    monkeypatch.setitem(factory._MAP, OtherConfig, Hangs)
    monkeypatch.setattr(JsonlRun, "sync", late)
    tracker = tracker_from_config(
        MultiConfig(
            trackers=[OtherConfig(), JsonlTrackerConfig(path=tmp_path / "runs")],
            accumulator=AccumulatorConfig(
                device="cpu", sync_every=2, backlog_dir=tmp_path / "backlog", flush_timeout=3.0
            ),
        )
    )
    assert isinstance(tracker, AccumulatingTracker)
    try:
        with tracker.open(RunConfig(name="two")) as run:
            log(run, range(10))
        assert tracker.report.parts["0-other"].undelivered > 0
        assert tracker.report.parts["1-jsonl"].undelivered == 0
        assert lines(tmp_path) == EXPECTED
    finally:
        released.set()


def test_a_state_that_one_cannot_read_is_loaded_by_none(tmp_path: Path) -> None:
    names = ("0-jsonl", "1-jsonl", "2-jsonl")
    tracker = MultiTracker({name: JsonlTracker(JsonlTrackerConfig(path=tmp_path / name)) for name in names})
    states = [{"run_id": "a"}, {"run_id": 5}, {"run_id": "c"}]
    with pytest.raises(ValueError, match="'run_id'"):
        tracker.load_state_dict({"run_id": "all", "trackers": dict(zip(names, states, strict=True))})
    assert [tracker.resume_id, *(child.resume_id for child in tracker.backends().values())] == [None] * 4
