"""A state holds everything: whoever loads it goes on, bit for bit, as if nothing had happened, or is told why not."""

import base64
import io
import json
import re
import threading
import time
import zlib

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
from lives import Files, Recordings, content, program

from d9d_tracker import RunConfig, TrackerValueError
from d9d_tracker.bank import staging
from d9d_tracker.pipeline import checkpoint
from d9d_tracker.pipeline.assembly import Assembly

NAME = RunConfig(name="run")


def through_a_file(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def play(tracker, calls):
    with tracker.open(NAME) as run:
        play_on(run, calls)


def play_on(run, calls):
    for call in calls:
        call(run)


def interrupted(backend, config, calls, at, beyond, leave):
    """Play in two lives: a state is taken after ``at`` calls, the first life plays ``beyond`` more and is cut off."""
    first = backend.tracker(**config)
    with first.open(NAME) as run:
        for call in calls[:at]:
            call(run)
        state = through_a_file(first.state_dict())
        for call in calls[at : at + beyond]:
            call(run)
        first.state_dict()  # waits for the backend
        restore = backend.cut_off()
    if leave:
        state = through_a_file(first.state_dict())
    else:
        restore()
    second = backend.tracker(**config)
    second.load_state_dict(state)
    play(second, calls[at:])


@pytest.mark.parametrize("resolution", ["step", "window"])
@pytest.mark.parametrize("backend_type", [Recordings, Files])
@pytest.mark.parametrize(("beyond", "leave"), [(0, False), (13, False), (0, True)])
def test_interrupted_anywhere_the_content_is_the_same_bit_for_bit(
    backend_type, resolution, beyond, leave, config, tmp_path
):
    config |= {"scalar_resolution": resolution}
    calls = program()
    whole = backend_type(tmp_path / "whole")
    play(whole.tracker(**config), calls)
    expected = content(whole.records())
    assert len(expected) > 15
    for at in range(0, len(calls) + 1, 1 if backend_type is Recordings else 5):  # files are slow
        backend = backend_type(tmp_path / str(at))
        interrupted(backend, config, calls, at, beyond, leave)
        assert content(backend.records()) == expected, f"interrupted after call {at}"
        assert len(backend.records()) <= len(whole.records())
        if isinstance(backend, Files):
            assert len(backend.lines()) <= len(whole.lines())


def test_without_flushes_in_a_step_the_file_is_the_same_line_by_line(config, tmp_path):
    calls = program(flush_in=())
    whole = Files(tmp_path / "whole")
    play(whole.tracker(**config), calls)
    for at in range(0, len(calls) + 1, 3):
        backend = Files(tmp_path / str(at))
        interrupted(backend, config, calls, at, beyond=13, leave=False)
        assert backend.lines() == whole.lines()


def tracker_with_state(config, tmp_path, calls=7):
    tracker = Recordings(tmp_path).tracker(**config)
    context = tracker.open(NAME)
    play_on(context.__enter__(), program()[:calls])
    return tracker, context


def same(one, other):
    return one.keys() == other.keys() and all(
        torch.equal(one[key], other[key]) if isinstance(one[key], torch.Tensor) else one[key] == other[key]
        for key in one
    )


def test_a_state_is_plain_values_and_loads_without_pickle(config, tmp_path):
    tracker, context = tracker_with_state(config, tmp_path)
    state = tracker.state_dict()
    assert {type(value) for value in state.values()} == {str, int}
    assert same(through_a_file(state), state)
    context.__exit__(None, None, None)


def test_loading_and_saving_again_changes_nothing(config, tmp_path):
    tracker, context = tracker_with_state(config, tmp_path)
    state = tracker.state_dict()
    context.__exit__(None, None, None)
    fresh = Recordings(tmp_path).tracker(**config)
    assert fresh.state_dict()["backend"] != state["backend"]
    fresh.load_state_dict(state)
    assert same(fresh.state_dict(), state)


@pytest.mark.parametrize("moment", ["before open", "open", "closed"])
@pytest.mark.parametrize("how", ["save", "async_save"])
def test_distributed_checkpoint(moment, how, config, tmp_path):
    tracker, context = tracker_with_state(config, tmp_path)
    if moment == "before open":
        context.__exit__(None, None, None)
        tracker = Recordings(tmp_path).tracker(**config)
    elif moment == "closed":
        context.__exit__(None, None, None)
    state = tracker.state_dict()
    folder = tmp_path / "checkpoint"
    if how == "save":
        dcp.save({"tracker": tracker}, checkpoint_id=folder)
    else:
        dcp.async_save({"tracker": tracker}, checkpoint_id=folder).result()
    if moment == "open":
        with pytest.raises(TrackerValueError, match="load before"):
            dcp.load({"tracker": tracker}, checkpoint_id=folder)
        context.__exit__(None, None, None)
    fresh = Recordings(tmp_path).tracker(**config)
    dcp.load({"tracker": fresh}, checkpoint_id=folder)
    assert same(fresh.state_dict(), state)
    dcp.load({"tracker": tracker}, checkpoint_id=folder)
    assert same(tracker.state_dict(), state)


def test_more_slots_and_other_names_on_resume(config, tmp_path):
    calls = program()
    whole, backend = Recordings(tmp_path), Recordings(tmp_path)
    play(whole.tracker(**config), calls)
    first = backend.tracker(**config)
    with first.open(NAME) as run:
        for call in calls[:20]:
            call(run)
        state = first.state_dict()
    second = backend.tracker(**config | {"max_scalars": 20, "max_histograms": 9})
    with second.open(NAME) as run:  # gives slots to other names first
        for number in range(5):
            run.scalar(f"other {number}", number)
        run.bins("other", torch.ones(1))
    del backend.runs[second.run_id]
    second.load_state_dict(state)
    play(second, calls[20:])
    assert content(backend.records()) == content(whole.records())


def test_a_series_that_came_after_the_state_is_empty_in_the_rows_before_it(config, tmp_path):
    """A zero there would beat the negative maximum of another rank."""

    def window_of(tracker, calls):
        with tracker.open(NAME) as run:
            play_on(run, calls)
            run.scalar("late", -5.0, reduce="max")
            run.set_step(2)
            return run.buffers.scalars.window[:2, :, :3].clone()

    first, context = tracker_with_state(config, tmp_path)
    state = first.state_dict()
    context.__exit__(None, None, None)
    second = Recordings(tmp_path).tracker(**config)
    second.load_state_dict(state)
    resumed, whole = window_of(second, []), window_of(Recordings(tmp_path).tracker(**config), program()[:7])
    assert whole.isinf().any()
    assert torch.equal(resumed, whole)


def test_another_sync_every_on_resume_loses_nothing(config, tmp_path):
    backend = Recordings(tmp_path)
    first = backend.tracker(**config)
    calls = program()
    with first.open(NAME) as run:
        for call in calls[:24]:
            call(run)
        state = first.state_dict()
    second = backend.tracker(**config | {"sync_every": 7})
    second.load_state_dict(state)
    play(second, calls[24:])
    whole = Recordings(tmp_path)
    play(whole.tracker(**config), calls)
    found, expected = content(backend.records()), content(whole.records())
    assert {k: v for k, v in found.items() if k[0] == "float"} == {k: v for k, v in expected.items() if k[0] == "float"}
    counts = [sum(r.value.count for r in b.records() if r.name == "values") for b in (backend, whole)]
    assert counts[0] == counts[1] == 77


def edit(key, **changes):
    def change(state):
        return state | {key: json.dumps(json.loads(state[key]) | changes)}

    return change


def edit_array(name, change):
    def changed(state):
        arrays = dict(np.load(io.BytesIO(zlib.decompress(base64.b64decode(state["arrays"])))))
        file = io.BytesIO()
        np.savez(file, **arrays | {name: change(arrays[name])})
        return state | {"arrays": base64.b64encode(zlib.compress(file.getvalue())).decode()}

    return changed


def scalar(name, reduce="mean"):
    return {"name": name, "context": [], "reduce": reduce}


REFUSED = {
    "not a dict": (lambda state: None, "is a dict"),
    "foreign": (lambda state: {"model": torch.zeros(3)}, "not the state of a d9d_tracker"),
    "newer": (lambda state: state | {"version": 3}, "version 3"),
    "no arrays": (lambda state: {k: v for k, v in state.items() if k != "arrays"}, "no arrays"),
    "torn table": (lambda state: state | {"table": state["table"][:-9]}, "damaged"),
    "table of another kind": (lambda state: state | {"table": "[]"}, "damaged"),
    "table that is a tensor": (lambda state: state | {"table": torch.zeros(3)}, "damaged"),
    "torn backend": (lambda state: state | {"backend": "{"}, "damaged"),
    "backend without type": (lambda state: state | {"backend": "{}"}, "damaged"),
    "torn arrays": (lambda state: state | {"arrays": state["arrays"][:-40]}, "damaged"),
    "truncated counts": (edit_array("counts", lambda counts: counts[:, :-1]), "counts"),
    "truncated lanes": (edit_array("lanes", lambda lanes: lanes[:1]), "lanes"),
    "lanes of another type": (edit_array("lanes", lambda lanes: lanes.astype(np.float32)), "lanes"),
    "moments of other rows": (edit_array("moments", lambda moments: moments[:0]), "moments"),
    "steps that do not rise": (edit("table", steps=[3, 3, 3]), "do not rise"),
    "window ahead of its step": (edit("table", steps=[0, 1, 0]), "ahead"),
    "negative step": (edit("table", steps=[0, 1, -1]), "damaged"),
    "two series of one name": (edit("table", scalars=[scalar("a"), scalar("a", "sum")]), "same name"),
    "a series without name": (edit("table", scalars=[scalar("")]), "no name"),
    "an unknown reduction": (edit("table", scalars=[scalar("a", "median")]), "damaged"),
    "a tail of another kind": (edit("table", tail={"steps": [2]}), "tail"),
    "a tail without arrays": (
        edit("table", tail={"scalars": [scalar("a")], "histograms": [], "steps": [2], "times": [0.0]}),
        "tail_lanes",
    ),
    "other provider": (edit("backend", type="JsonlTracker"), "JsonlTracker"),
    "other resolution": (edit("table", resolution="window"), "scalar_resolution"),
    "longer window": (edit("table", passed=4), "sync_every"),
    "run id of another type": (edit("backend", state={"run_id": 7}), "run_id"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_state_that_does_not_fit_is_refused_and_nothing_changes(name, config, tmp_path):
    damage, message = REFUSED[name]
    backend = Files(tmp_path) if "run id" in name else Recordings(tmp_path)
    first = backend.tracker(**config)
    with first.open(NAME) as run:
        for call in program()[:13]:
            call(run)
        state = first.state_dict()
    tracker = backend.tracker(**config)
    tracker.load_state_dict(state)
    with pytest.raises(ValueError, match=message):
        tracker.load_state_dict(damage(dict(state)))
    assert same(tracker.state_dict(), state)
    with tracker.open(NAME):
        assert tracker.run_id == first.run_id


def test_fewer_slots_than_series_are_refused(config, tmp_path):
    tracker, context = tracker_with_state(config, tmp_path)
    state = tracker.state_dict()
    context.__exit__(None, None, None)
    with pytest.raises(ValueError, match=r"accumulator\.max_scalars"):
        Recordings(tmp_path).tracker(**config | {"max_scalars": 1}).load_state_dict(state)


def test_what_compiled_code_here_logs_differently_is_dropped_and_said(config, tmp_path, caplog):
    tracker, context = tracker_with_state(config, tmp_path)
    state = tracker.state_dict()
    context.__exit__(None, None, None)
    other = Recordings(tmp_path).tracker(**config)
    call = torch.compile(lambda run: run.scalar("sum", 1.0, reduce="last"), backend="eager")
    with other.open(NAME) as run:
        call(run)
    other.load_state_dict(state)
    with other.open(NAME) as run:
        call(run)
        resumed = checkpoint.read(other.state_dict()).window
    saved = checkpoint.read(state).window
    assert resumed.scalars == saved.scalars
    assert np.array_equal(resumed.lanes, saved.lanes, equal_nan=True)
    assert re.search("dropped: series 'sum' was logged with .*'sum'.* before and now with .*'last'", caplog.text)


def test_a_state_from_before_any_run_starts_a_new_one(config, tmp_path):
    backend = Recordings(tmp_path)
    tracker = backend.tracker(**config)
    tracker.load_state_dict(backend.tracker(**config).state_dict())
    play(tracker, program())
    assert len(backend.runs) == 1


def test_a_state_is_as_large_as_what_is_in_use(config, tmp_path):
    def size(**capacity):
        tracker, context = tracker_with_state(config | capacity, tmp_path)
        file = io.BytesIO()
        torch.save(tracker.state_dict(), file)
        context.__exit__(None, None, None)
        return len(file.getvalue())

    small, large = size(), size(max_scalars=4096, max_histograms=512, sync_every=50)
    assert large < small + 500
    assert large < 10_000


def test_taking_a_state_does_not_wait_for_a_backend_that_is_held(config, tmp_path):
    released = threading.Event()
    backend = Recordings(tmp_path)
    tracker = backend.tracker(**config | {"flush_timeout": 10_000.0})  # the test would take as long
    with tracker.open(NAME) as run:
        tracker._tracker.run.scalar = lambda *_: released.wait()
        for step in range(9):
            run.set_step(step)
            run.scalar("a", 1.0)
        state = tracker.state_dict()
        released.set()
    assert json.loads(state["backend"])["kept"] in ({"": [0]}, {"": [0, 1]})  # taken together, or one by one


def test_times_are_those_at_which_the_steps_began(config, tmp_path):
    backend = Files(tmp_path)
    tracker = backend.tracker(**config)
    before = time.time()
    with tracker.open(NAME) as run:
        play_on(run, program())
        state = through_a_file(tracker.state_dict())
    times = {}
    for record in backend.records():
        times.setdefault(record.step, set()).add(record.time)
    assert all(len(found) == 1 for found in times.values())
    began = [times[step].pop() for step in sorted(times)]
    assert before <= began[0]
    assert began == sorted(set(began))
    assert began[-1] <= time.time()
    second = backend.tracker(**config)
    second.load_state_dict(state)
    with second.open(NAME):
        pass
    assert {record.time for record in backend.records() if record.step == 10} == {began[-1]}


def test_a_state_is_taken_though_all_host_buffers_wait_to_be_read(config, tmp_path, monkeypatch):
    """For a rank that stays away, for one."""
    go, take = threading.Event(), Assembly.take
    monkeypatch.setattr(Assembly, "take", lambda *arguments: go.wait(60) and take(*arguments))
    monkeypatch.setattr(staging, "_MOST_HOST_BYTES", 0)
    monkeypatch.setattr(staging, "_LONGEST_WAIT_SECONDS", 0.01)
    backend = Recordings(tmp_path)
    tracker = backend.tracker(**config | {"flush_timeout": 0.1})
    with tracker.open(NAME) as run:
        for step in range(10):
            run.set_step(step)
            run.scalar("a", step)
        state = tracker.state_dict()
        go.set()
    second = backend.tracker(**config)
    second.load_state_dict(state)
    play(second, [])
    assert [(record.step, record.value) for record in backend.records()] == [(step, step) for step in range(10)]
