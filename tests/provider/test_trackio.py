"""What Trackio alone does: rows that are stored once, and belong to a run."""

from datetime import datetime

import pytest

from d9d_tracker.base import RunConfig

from .conftest import TrackioStorage, key_of

PROPERTIES = RunConfig(name="a run")


def test_what_comes_after_a_flush_of_its_step_is_stored_too(trackio_storage: TrackioStorage) -> None:
    tracker = trackio_storage.tracker()
    with tracker.open(PROPERTIES) as run:
        run.set_step(1)
        for name in "ab":
            run.scalar(name, 1.0)
            run.flush()
    assert trackio_storage.scalars(str(tracker.run_id)) == {key_of("a", 1): 1.0, key_of("b", 1): 1.0}


def test_a_run_that_is_carried_over_began_when_it_did(trackio_storage: TrackioStorage) -> None:
    from trackio.sqlite_storage import SQLiteStorage

    tracker = trackio_storage.tracker()
    with tracker.open(RunConfig(name="old", started=1e9)) as run:
        run.scalar("a", 1.0)
    (stored,) = (one for one in SQLiteStorage.get_run_records("tests") if one["id"] == tracker.run_id)
    assert datetime.fromisoformat(stored["created_at"]).timestamp() == 1e9
    config = SQLiteStorage.get_run_config("tests", "old", run_id=tracker.run_id)
    assert config is not None
    assert datetime.fromisoformat(config["_Created"]).timestamp() == 1e9


def test_a_rewind_takes_nothing_from_another_run_of_the_project(trackio_storage: TrackioStorage) -> None:
    trackers = [trackio_storage.tracker() for _ in range(2)]
    for tracker in trackers:
        with tracker.open(PROPERTIES) as run:
            for step in range(3):
                run.set_step(step)
                run.scalar("a", float(step))
    again = trackio_storage.tracker(trackers[1].state_dict())
    with again.open(PROPERTIES) as run:
        run.rewind(1)
    whole, cut = (trackio_storage.scalars(str(tracker.run_id)) for tracker in trackers)
    assert whole == {key_of("a", step): float(step) for step in range(3)}
    assert cut == {key_of("a", 0): 0.0}


@pytest.mark.parametrize("beside", [{}, {"loss": 1.0}])
def test_a_value_that_is_logged_again_takes_the_place_of_the_first(trackio_storage, beside) -> None:
    tracker = trackio_storage.tracker()
    with tracker.open(PROPERTIES) as run:
        for step in (3, 1):
            run.log_at(step, {"accuracy": 0.5, **beside})
            run.flush()
        run.log_at(1, {"accuracy": 0.75})
        tracker_state = tracker.state_dict()
    again = trackio_storage.tracker()
    again.load_state_dict(tracker_state)
    with again.open(PROPERTIES) as run:
        run.log_at(3, {"accuracy": 0.25})
    found = trackio_storage.scalars(str(tracker.run_id))
    assert {step: value for (name, _, step), value in found.items() if name == "accuracy"} == {1: 0.75, 3: 0.25}
