"""What every backend keeps of what it is given, read back with its tool's own reader."""

import math
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from d9d_tracker.accumulator import AccumulatingTracker
from d9d_tracker.bare_run import BareRun
from d9d_tracker.base import BaseTracker, RunConfig
from d9d_tracker.config import AccumulatorConfig
from d9d_tracker.provider.console import ConsoleTracker, ConsoleTrackerConfig
from d9d_tracker.provider.jsonl import JsonlTracker
from d9d_tracker.provider.null import NullTracker, NullTrackerConfig
from d9d_tracker.record import Histogram, Record

from .conftest import MLflowStorage, Storage, TensorBoardStorage, WandbStorage, key_of

PROPERTIES = RunConfig(name="a run", description="what it is for", hparams={"lr": 0.1, "layers": [1, 2]})


@pytest.fixture(params=["null", "console", "jsonl", "aim", "tensorboard", "wandb", "mlflow", "trackio"])
def tracker(request: pytest.FixtureRequest) -> BaseTracker[Any]:
    if request.param == "null":
        return NullTracker.from_config(NullTrackerConfig(accumulator=None))
    if request.param == "console":
        return ConsoleTracker.from_config(ConsoleTrackerConfig(accumulator=None))
    return request.getfixturevalue(f"{request.param}_storage").tracker()


def test_scalars_keep_value_step_and_context(storage: Storage) -> None:
    tracker = storage.tracker()
    expected = {}
    with tracker.open(PROPERTIES) as run:
        run.set_context({"stage": "train", "rank": "0"})
        for step in range(20):
            run.set_step(step)
            run.scalar("loss", torch.tensor(1 / (step + 1)))
            expected[key_of("loss", step, stage="train", rank="0")] = torch.tensor(1 / (step + 1)).item()
            run.scalar("loss", -step, {"stage": "eval", "set": "b"})
            expected[key_of("loss", step, stage="eval", rank="0", set="b")] = float(-step)
        run.set_context({})
        run.scalar("bare", np.float32(0.1))
        expected[key_of("bare", 19)] = float(np.float32(0.1))
        run.scalar("matrix", torch.tensor([[2]], dtype=torch.int64))
        expected[key_of("matrix", 19)] = 2.0
        run.scalar("half", torch.tensor(0.1, dtype=torch.bfloat16, requires_grad=True))
        expected[key_of("half", 19)] = torch.tensor(0.1, dtype=torch.bfloat16).item()
    assert storage.scalars(tracker.run_id) == expected


def test_finished_points_are_what_calls_for_each_would_be(storage: Storage) -> None:
    tracker = storage.tracker()
    values = [math.nan, 0.1, -math.inf, -0.0, 1e-310, 2.0**60]
    histogram = Histogram.from_values(torch.arange(7.0))
    points = [Record(name, step, {"stage": "train"}, value) for step, value in enumerate(values) for name in "ab"]
    with tracker.open(PROPERTIES) as run:
        run.write(iter(points[:3]))
        run.write([*points[3:], Record("grad", 5, {}, histogram)])
    ours = storage.scalars(tracker.run_id), storage.distributions(tracker.run_id)
    with tracker.open(PROPERTIES) as run:
        run.set_context({"stage": "train"})
        for name, step, _, value, _ in points:
            run.set_step(step)
            assert isinstance(value, float)
            run.scalar(name, value)
        run.set_context({})
        run.histogram("grad", histogram)
    theirs = storage.scalars(tracker.run_id), storage.distributions(tracker.run_id)
    assert str(ours) == str(theirs)
    assert len(ours[0]) >= len(points)


def test_a_persistent_context_holds_for_finished_points_too(storage: Storage) -> None:
    tracker = storage.tracker()
    with tracker.open(PROPERTIES) as run:
        run.set_context({"stage": "train"})
        run.write([Record("loss", 3, {"set": "b"}, 1.0)])
    assert storage.scalars(tracker.run_id) == {key_of("loss", 3, stage="train", set="b"): 1.0}


def test_non_finite_scalars_are_seen(storage: Storage) -> None:
    tracker = storage.tracker()
    with tracker.open(PROPERTIES) as run:
        for step, value in enumerate([math.nan, 1.0, math.inf, -math.inf]):
            run.set_step(step)
            run.scalar("loss", value)
    values = [storage.scalars(tracker.run_id)[key_of("loss", step)] for step in range(4)]
    np.testing.assert_array_equal(values, [math.nan, 1.0, math.inf, -math.inf])


@pytest.mark.parametrize(
    "values",
    [
        pytest.param(torch.randn(1000), id="random"),
        pytest.param(torch.full((10,), 0.3), id="constant"),
        pytest.param(torch.zeros(10), id="zeros"),
        pytest.param(torch.tensor([1.0, math.nan, math.inf, -math.inf, 2.0]), id="mixed"),
        pytest.param(torch.tensor([math.nan, math.nan]), id="all NaN"),
        pytest.param(torch.tensor([7.0]), id="one"),
        pytest.param(torch.randn(10, 10, dtype=torch.float64).t()[::2], id="strided"),
    ],
)
def test_histograms_keep_count_and_range(storage: Storage, values: torch.Tensor) -> None:
    tracker = storage.tracker()
    with tracker.open(PROPERTIES) as run:
        run.set_step(5)
        run.bins("grad", values, {"layer": "1"})
        run.histogram("given", Histogram.from_values(values))
    found = storage.distributions(tracker.run_id)
    finite = values[values.isfinite()].double()
    counts = (int(values.isnan().sum()), int(values.isinf().sum()))
    for key in (key_of("grad", 5, layer="1"), key_of("given", 5)):
        count, low, high, *non_finite = found[key]
        assert count == finite.numel()
        assert tuple(non_finite) == counts
        if finite.numel():
            assert low <= finite.min()
            assert high >= finite.max()
        if finite.unique().numel() > 1:
            assert (low, high) == (finite.min(), finite.max())


def test_a_population_of_nothing_stores_nothing_wrong(storage: Storage) -> None:
    tracker = storage.tracker()
    with tracker.open(PROPERTIES) as run:
        run.bins("none", torch.empty(0))
        run.scalar("after", 1)
    assert all(count[0] == 0 for count in storage.distributions(tracker.run_id).values())
    assert storage.scalars(tracker.run_id) == {key_of("after", 0): 1.0}


def test_properties_are_kept(storage: Storage) -> None:
    tracker = storage.tracker()
    with tracker.open(PROPERTIES):
        pass
    stored = storage.properties(tracker.run_id)
    assert stored == {"id": tracker.run_id, **PROPERTIES.model_dump(exclude={"started", "ended"})}


def test_odd_hparams_survive(storage: Storage) -> None:
    tracker = storage.tracker()
    odd = {
        "dtype": torch.float32,
        "path": Path("a/b"),
        "set": {1},
        "big": 2**80,
        "bytes": b"\xff",
        "numpy": np.float32(0.5),
        "surrogate": "\udc80",
        "deep": {2.5: {None: (1, 2)}, "": {"empty": {}}},
        "nan": math.nan,
        "object": test_odd_hparams_survive,
    }
    with tracker.open(RunConfig(name="odd", hparams=odd)):
        pass
    stored = storage.properties(tracker.run_id)["hparams"]
    assert stored.keys() == odd.keys()
    assert stored["dtype"] == "torch.float32"
    assert stored["path"] == "a/b"
    assert stored["set"] == [1]
    assert int(stored["big"]) == 2**80
    assert stored["bytes"] == repr(b"\xff")
    assert stored["numpy"] == 0.5
    assert stored["deep"]["2.5"] == {"None": [1, 2]}
    assert {"empty": {}} in stored["deep"].values()
    assert str(stored["nan"]) == "nan"
    assert "test_odd_hparams_survive" in stored["object"]


def test_another_thread_than_the_opener_logs(storage: Storage) -> None:
    tracker = storage.tracker()
    with tracker.open(PROPERTIES) as run:

        def write() -> None:
            for step in range(3):
                run.set_step(step)
                run.scalar("loss", float(step))
                run.bins("grad", torch.ones(3))
                run.flush()

        thread = threading.Thread(target=write)
        thread.start()
        thread.join()
    assert storage.scalars(tracker.run_id) == {key_of("loss", step): float(step) for step in range(3)}
    assert len(storage.distributions(tracker.run_id)) == 3


def test_a_loaded_state_attaches_to_the_same_run_once(storage: Storage) -> None:
    first = storage.tracker()
    assert first.state_dict() == {"run_id": None}
    with first.open(PROPERTIES) as run:
        run.scalar("loss", 1)
        inside = first.state_dict()
    assert first.state_dict() == inside
    second = storage.tracker(inside)
    with second.open(PROPERTIES) as run:
        run.set_step(1)
        run.scalar("loss", 2)
    assert second.run_id == first.run_id
    assert storage.scalars(first.run_id) == {key_of("loss", 0): 1.0, key_of("loss", 1): 2.0}
    with second.open(PROPERTIES):
        assert second.run_id != first.run_id


def test_a_point_logged_again_replaces_the_former(storage: Storage) -> None:
    tracker = storage.tracker()
    with tracker.open(PROPERTIES) as run:
        for value in (1, 2):
            run.scalar("loss", value)
            run.bins("grad", torch.arange(value + 1))
    assert storage.scalars(tracker.run_id) == {key_of("loss", 0): 2.0}
    assert storage.distributions(tracker.run_id) == {key_of("grad", 0): (3, 0.0, 2.0, 0, 0)}


def test_steps_after_a_rewind_replace_the_former(storage: Storage) -> None:
    tracker = storage.tracker()
    with tracker.open(PROPERTIES) as run:
        for step in range(6):
            run.set_step(step)
            run.scalar("loss", step)
            run.bins("grad", torch.full((3,), step))
    with storage.tracker(tracker.state_dict()).open(PROPERTIES) as run:
        run.rewind(3)
        for step in range(3, 6):
            run.set_step(step)
            run.scalar("loss", step * 10)
            run.bins("grad", torch.full((4,), step))
    amended = {5} if isinstance(storage, MLflowStorage) else set()  # the last step may have ended in its middle
    if isinstance(storage, MLflowStorage):
        storage.amended = frozenset(amended)
    replaced = range(3, 6) if storage.replaces else amended
    assert storage.scalars(tracker.run_id) == {
        key_of("loss", step): float(step * 10 if step in replaced else step) for step in range(6)
    }
    counts = {key[2]: value[0] for key, value in storage.distributions(tracker.run_id).items()}
    assert counts == {step: 4 if step in replaced else 3 for step in range(6)}


@pytest.mark.parametrize("kind", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_an_exception_surfaces_and_loses_nothing(storage: Storage, kind: type[BaseException]) -> None:
    tracker = storage.tracker()

    def loop() -> None:
        with tracker.open(PROPERTIES) as run:
            run.scalar("loss", 3)
            raise kind("the loop broke")

    with pytest.raises(kind, match="the loop broke"):
        loop()
    assert storage.scalars(tracker.run_id) == {key_of("loss", 0): 3.0}
    with storage.tracker(tracker.state_dict()).open(PROPERTIES):
        pass


def test_two_writers_of_one_run_are_refused(storage: Storage) -> None:
    tracker = storage.tracker()
    with tracker.open(PROPERTIES) as run:
        run.scalar("loss", 1)
        second = storage.tracker(tracker.state_dict())
        for _ in range(2):
            with (
                pytest.raises(RuntimeError, match=f"{tracker.run_id}.*written by another job"),
                second.open(PROPERTIES),
            ):
                pass
        run.set_step(1)
        run.scalar("loss", 2)
    with second.open(PROPERTIES):
        assert second.run_id == tracker.run_id
    assert storage.scalars(tracker.run_id) == {key_of("loss", 0): 1.0, key_of("loss", 1): 2.0}


def test_a_run_that_is_gone_is_started_anew_with_a_warning(storage: Storage, caplog: pytest.LogCaptureFixture) -> None:
    tracker = storage.tracker({"run_id": "0123456789abcdef01234567"})
    with tracker.open(PROPERTIES) as run:
        run.scalar("loss", 1)
    assert "run '0123456789abcdef01234567'" in caplog.text
    assert storage.scalars(tracker.run_id) == {key_of("loss", 0): 1.0}


def test_a_closed_run_refuses_values(tracker: BaseTracker[Any]) -> None:
    with tracker.open(PROPERTIES) as run:
        run.scalar("loss", 1)
    with pytest.raises(ValueError, match=r"'loss'.*closed"):
        run.scalar("loss", 1)
    with pytest.raises(ValueError, match=r"'grad'.*closed"):
        run.bins("grad", torch.ones(3))
    with pytest.raises(ValueError, match=r"'grad'.*closed"):
        run.histogram("grad", Histogram.from_values(torch.ones(3)))
    with pytest.raises(ValueError, match=r"7.*closed"):
        run.set_step(7)
    run.flush()
    assert isinstance(run, BareRun)
    run.close()


def test_bad_steps_and_names_are_refused(tracker: BaseTracker[Any]) -> None:
    with tracker.open(PROPERTIES) as run:
        run.set_step(5)
        run.set_step(5)
        for step, error in [(4, ValueError), (-1, ValueError), (6.0, TypeError), (True, TypeError), ("6", TypeError)]:
            with pytest.raises(error, match="step"):
                run.set_step(step)  # pyright: ignore[reportArgumentType] - what is refused is the type
        for step, error in [(-1, ValueError), (2**63, ValueError), (6.0, TypeError), (True, TypeError)]:
            with pytest.raises(error, match=r"log_at\(.*a step is"):
                run.log_at(step, {"loss": 1.0})  # pyright: ignore[reportArgumentType] - what is refused is the type
        for name in ("", None, 3):
            with pytest.raises(ValueError, match="name of a series"):
                run.scalar(name, 1)  # pyright: ignore[reportArgumentType] - what is refused is the type


@pytest.mark.parametrize("storing", ["console", "jsonl", "aim", "tensorboard", "wandb", "mlflow", "trackio"])
def test_bad_values_are_refused(request: pytest.FixtureRequest, storing: str) -> None:
    if storing == "console":
        tracker = ConsoleTracker.from_config(ConsoleTrackerConfig(accumulator=None))
    else:
        tracker = request.getfixturevalue(f"{storing}_storage").tracker()
    with tracker.open(PROPERTIES) as run:
        for value, error in [
            (torch.ones(2), ValueError),
            (torch.empty(0), ValueError),
            (torch.tensor(1j), TypeError),
            (1j, TypeError),
            ("1", TypeError),
            (None, TypeError),
            (10**400, ValueError),
        ]:
            with pytest.raises(error, match="'loss'"):
                run.scalar("loss", value)
        for values, error in [(torch.ones(2, dtype=torch.complex64), TypeError), ([1.0], TypeError)]:
            with pytest.raises(error, match="'grad'"):
                run.bins("grad", values)
        for context in [{"stage": [1]}, {1: "a"}, ["a"]]:
            with pytest.raises(TypeError, match="context"):
                run.scalar("loss", 1, context)
            with pytest.raises(TypeError, match="context"):
                run.set_context(context)


@pytest.mark.parametrize("state", [{}, {"run_id": 3}, {"run_id": ""}, {"run_id": ["a"]}])
def test_a_foreign_state_is_refused_and_changes_nothing(tracker: BaseTracker[Any], state: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="'run_id'"):
        tracker.load_state_dict(state)
    assert tracker.state_dict() == {"run_id": None}


@pytest.mark.parametrize("added", [{"batch": 8, "net": {"layers": 3}}])
def test_hyperparameters_can_be_added_later(storage: Storage, added: dict[str, Any]) -> None:
    if isinstance(storage, TensorBoardStorage):
        with storage.tracker().open(PROPERTIES) as run, pytest.raises(NotImplementedError, match="on opening only"):
            run.add_hparams(added)
        return
    tracker = storage.tracker()
    with tracker.open(RunConfig(name="late", hparams={"lr": 0.5})) as run:
        run.scalar("loss", 1.0)
        run.add_hparams(added)
        run.flush()
        if not isinstance(storage, WandbStorage):
            run.rewind(0)  # takes the point back and not the hyperparameters
        run.set_step(1)
        run.scalar("loss", 2.0)
    found = _hparams(storage, tracker.run_id)
    assert found["lr"] in (0.5, "0.5")
    assert found["batch"] in (8, "8")
    assert found.get("net", {}).get("layers", found.get("net.layers")) in (3, "3")


def _hparams(storage: Storage, run_id: str) -> dict[str, Any]:
    if isinstance(storage, MLflowStorage):
        return storage.client.get_run(run_id).data.params
    found = dict(storage.properties(run_id)["hparams"])
    if isinstance(storage, WandbStorage):
        for record in storage.records(run_id):
            if record["type"] == "config":
                found |= record["config"]["update"]
    return found


def test_points_have_the_time_of_their_step(storage: Storage) -> None:
    tracker = storage.tracker()
    began = {0: 1_700_000_000.0, 1: 1_700_000_001.5, 2: 1_700_003_600.25}
    records = [Record(name, step, {}, step + 1.0, time) for step, time in began.items() for name in ("loss", "lr")]
    with tracker.open(PROPERTIES) as run:
        run.write(records[:2])
        run.flush()
        run.write(records[2:])
    assert storage.times(tracker.run_id, "loss") == began


def test_what_has_no_time_was_now(storage: Storage) -> None:
    if storage.tracker_type is JsonlTracker:
        return  # it keeps what it is given
    tracker = storage.tracker()
    before = time.time()
    with tracker.open(PROPERTIES) as run:
        run.scalar("loss", 1.0)
    assert before - 1 < storage.times(tracker.run_id, "loss")[0] < time.time() + 1


@pytest.mark.parametrize("histogram_first", [True, False])
def test_a_series_called_as_a_part_of_another_is_kept_apart(storage: Storage, histogram_first: bool) -> None:
    values = torch.tensor([1.0, 3.0, math.nan])
    tracker = storage.tracker()
    with tracker.open(PROPERTIES) as run:
        calls = [
            lambda: run.bins("act", values),
            lambda: [run.scalar(f"act/{part}", 77.0) for part in ("mean", "nan", "p50", "count")],
        ]
        for call in calls if histogram_first else reversed(calls):
            call()
    kept = list(storage.scalars(tracker.run_id).values()) + [
        part for histogram in storage.distributions(tracker.run_id).values() for part in histogram
    ]
    if isinstance(storage, MLflowStorage):
        kept = list(storage.metrics(tracker.run_id).values())
        assert {2.0, 1.0, 3.0} <= set(kept)
    assert sum(value == 77.0 for value in kept) >= 4


def test_a_bare_run_that_goes_on_is_rewound_by_its_first_step(storage: Storage) -> None:
    tracker = storage.tracker()
    with tracker.open(PROPERTIES) as run:
        for step in range(10):
            run.set_step(step)
            run.scalar("loss", step + 0.5)
            run.flush()
    again = storage.tracker(tracker.state_dict())
    with again.open(PROPERTIES) as run:
        for step in range(7, 12):
            run.set_step(step)
            run.scalar("loss", step + 0.5 if step < 10 or not storage.replaces else step + 0.25)
    assert again.run_id == tracker.run_id
    expected = {step: step + 0.5 if step < 10 or not storage.replaces else step + 0.25 for step in range(12)}
    assert storage.scalars(tracker.run_id) == {key_of("loss", step): value for step, value in expected.items()}


def test_a_value_at_a_step_that_is_over(storage: Storage, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tracker = AccumulatingTracker(storage.tracker(), AccumulatorConfig(sync_every=1, backlog_dir=tmp_path / "backlog"))
    with tracker.open(PROPERTIES) as run:
        for step in range(0, 40, 10):
            run.set_step(step)
            run.scalar("loss", float(step))
            run.flush()
            run.log_at(step // 10, {"val/acc": 0.5})
    assert isinstance(tracker, AccumulatingTracker)
    expected = {key_of("loss", step): float(step) for step in range(0, 40, 10)}
    # W&B takes nothing for steps before its last row.
    taken = 2 if isinstance(storage, WandbStorage) else 4
    expected |= {key_of("val/acc", epoch): 0.5 for epoch in range(taken)}
    assert storage.scalars(str(tracker.run_id)) == expected
    assert tracker.report.refused == Counter({"val/acc": 4 - taken})
    assert caplog.text.count("refused val/acc at step 2") == (taken < 4)


def test_a_state_that_is_older_than_the_run_finds_it(storage: Storage) -> None:
    first = storage.tracker()
    first.new_id = first.make_id(PROPERTIES)
    state = first.state_dict()
    assert (state["run_id"], state["new_id"]) == (None, first.new_id)
    for steps in ([0, 1, 2], [1, 2, 3], [2, 3]):
        tracker = first if steps[0] == 0 else storage.tracker(state)
        with tracker.open(PROPERTIES) as run:
            if steps[0] > 0:
                run.rewind(steps[0])
            for step in steps:
                run.set_step(step)
                run.scalar("loss", float(step))
        assert tracker.run_id == first.run_id
        assert "new_id" not in tracker.state_dict()
    found = storage.scalars(str(first.run_id))
    assert {step: value for (_, _, step), value in found.items()} == {step: float(step) for step in range(4)}
