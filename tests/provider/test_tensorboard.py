"""What only TensorBoard can do or not."""

import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator as PageReader

from d9d_tracker.base import RunConfig
from d9d_tracker.config import AccumulatorConfig, LinearBinning
from d9d_tracker.factory import tracker_from_config
from d9d_tracker.provider.tensorboard import TensorBoardConfig
from d9d_tracker.provider.tensorboard import tracker as tensorboard
from d9d_tracker.record import Histogram

from .conftest import TensorBoardStorage, key_of

PROPERTIES = RunConfig(name="a run: 1/2", hparams={"lr": 0.1, "net": {"layers": [1, 2], "on": True}})


def files(storage: TensorBoardStorage, run_id: str) -> list[Path]:
    return sorted((storage.folder / run_id).glob("events.out.tfevents.*"))


def test_histograms_keep_their_edges_and_moments(tensorboard_storage: TensorBoardStorage) -> None:
    values = torch.randn(1000, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 3
    histogram = Histogram.from_values(values, LinearBinning(low=-2, high=2, bins=8))
    tracker = tensorboard_storage.tracker()
    with tracker.open(PROPERTIES) as run:
        run.histogram("grad", histogram)
        run.bins("exponential", values)
    events = tensorboard_storage.events(str(tracker.run_id))
    (stored,) = [point.histogram_value for point in events.Histograms("grad")]
    assert list(stored.bucket_limit) == histogram.edges[1:].tolist()
    assert list(stored.bucket) == histogram.counts.tolist()
    assert (stored.min, stored.max) == (values.min(), values.max())
    assert (stored.sum, stored.sum_squares) == (histogram.sum, histogram.sum_squares)
    (stored,) = [point.histogram_value for point in events.Histograms("exponential")]
    assert stored.bucket == Histogram.from_values(values).counts.tolist()


def test_the_page_reads_the_same_bins(tensorboard_storage: TensorBoardStorage) -> None:
    tracker = tensorboard_storage.tracker()
    with tracker.open(PROPERTIES) as run:
        run.bins("grad", torch.tensor([1.0, 1.0, 3.0]))
    page = PageReader(str(tensorboard_storage.folder / str(tracker.run_id))).Reload()
    (tensor,) = page.Tensors("grad")
    from tensorboard.util.tensor_util import make_ndarray

    left, right, counts = make_ndarray(tensor.tensor_proto).T
    assert counts.sum() == 3
    assert (left[0], right[-1]) == (1.0, 3.0)
    assert np.all(left[1:] == right[:-1])


def test_hyperparameters_reach_their_page(tensorboard_storage: TensorBoardStorage) -> None:
    tracker = tensorboard_storage.tracker()
    with tracker.open(PROPERTIES):
        pass
    from tensorboard.plugins.hparams import metadata

    events = tensorboard_storage.events(str(tracker.run_id))
    content = events.SummaryMetadata(metadata.SESSION_START_INFO_TAG).plugin_data.content
    hparams = metadata.parse_session_start_info_plugin_data(content).hparams
    assert hparams["lr"].number_value == 0.1
    assert hparams["net.layers"].string_value == "[1, 2]"
    assert hparams["net.on"].bool_value


def test_numbers_are_float32(tensorboard_storage: TensorBoardStorage) -> None:
    tracker = tensorboard_storage.tracker()
    with tracker.open(PROPERTIES) as run:
        for step, value in enumerate([0.1, 1e300, -1e300, 16777217.0]):
            run.set_step(step)
            run.scalar("loss", value)
    found = tensorboard_storage.scalars(str(tracker.run_id))
    expected = [float(np.float32(0.1)), math.inf, -math.inf, 16777216.0]
    assert [found[key_of("loss", step)] for step in range(4)] == expected


def test_a_value_after_a_flush_of_its_step_replaces_the_former(tensorboard_storage: TensorBoardStorage) -> None:
    tracker = tensorboard_storage.tracker()
    with tracker.open(PROPERTIES) as run:
        for step in range(3):
            run.set_step(step)
            run.scalar("loss", step)
            run.scalar("other", step)
            run.flush()
            run.scalar("loss", step * 10)
            run.scalar("later", step)
        run.flush()
        run.bins("grad", torch.ones(3))
    assert tensorboard_storage.scalars(str(tracker.run_id)) == {
        key_of(name, step): float(step * factor)
        for name, factor in (("loss", 10), ("other", 1), ("later", 1))
        for step in range(3)
    }
    assert tensorboard_storage.properties(str(tracker.run_id))["name"] == "a run: 1/2"


def test_a_flush_that_fails_keeps_all_and_doubles_nothing(
    tensorboard_storage: TensorBoardStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = tensorboard_storage.tracker()
    with tracker.open(PROPERTIES) as run:
        run.scalar("loss", 1)
        run.flush()
        size = files(tensorboard_storage, str(tracker.run_id))[0].stat().st_size
        run.scalar("loss", 2)
        with monkeypatch.context() as patch:
            patch.setattr(tensorboard.os, "fsync", lambda file: (_ for _ in ()).throw(OSError(28, "No space left")))
            for _ in range(2):
                with pytest.raises(OSError, match=r"No space left: 1 steps of run .* kept in memory"):
                    run.flush()
        assert files(tensorboard_storage, str(tracker.run_id))[0].stat().st_size == size
    assert tensorboard_storage.scalars(str(tracker.run_id)) == {key_of("loss", 0): 2.0}


def test_a_torn_end_of_a_killed_life_is_passed_over(tensorboard_storage: TensorBoardStorage) -> None:
    tracker = tensorboard_storage.tracker()
    with tracker.open(PROPERTIES) as run:
        for step in range(4):
            run.set_step(step)
            run.scalar("loss", step)
            run.flush()
    (first,) = files(tensorboard_storage, str(tracker.run_id))
    with first.open("r+b") as file:
        file.truncate(first.stat().st_size - 5)
    with tensorboard_storage.tracker(tracker.state_dict()).open(PROPERTIES) as run:
        run.rewind(2)
        run.set_step(2)
        run.scalar("loss", 20)
    assert len(files(tensorboard_storage, str(tracker.run_id))) == 2
    found = tensorboard_storage.scalars(str(tracker.run_id))
    assert found == {key_of("loss", 0): 0.0, key_of("loss", 1): 1.0, key_of("loss", 2): 20.0}


def test_a_rewind_to_the_start_keeps_the_texts(tensorboard_storage: TensorBoardStorage) -> None:
    tracker = tensorboard_storage.tracker()
    with tracker.open(PROPERTIES) as run:
        run.scalar("loss", 1)
    with tensorboard_storage.tracker(tracker.state_dict()).open(PROPERTIES) as run:
        run.rewind(0)
    assert tensorboard_storage.scalars(str(tracker.run_id)) == {}
    assert tensorboard_storage.properties(str(tracker.run_id))["hparams"] == PROPERTIES.hparams


def test_a_file_that_vanished_is_written_anew(
    tensorboard_storage: TensorBoardStorage, caplog: pytest.LogCaptureFixture
) -> None:
    tracker = tensorboard_storage.tracker()
    with tracker.open(PROPERTIES) as run, caplog.at_level(logging.WARNING):
        run.scalar("loss", 1)
        run.flush()
        files(tensorboard_storage, str(tracker.run_id))[0].unlink()
        run.set_step(1)
        run.scalar("loss", 2)
    assert "had vanished" in caplog.text
    found = tensorboard_storage.scalars(str(tracker.run_id))
    assert found == {key_of("loss", 0): 1.0, key_of("loss", 1): 2.0}


def test_a_run_is_a_folder_named_after_it(tensorboard_storage: TensorBoardStorage) -> None:
    tracker = tensorboard_storage.tracker()
    with tracker.open(PROPERTIES):
        assert str(tracker.run_id).startswith("a-run-1-2-")
    for name in ("///", "..", "x" * 300, "größe"):
        with tracker.open(RunConfig(name=name)):
            assert (tensorboard_storage.folder / str(tracker.run_id)).is_dir()
    with (
        pytest.raises(ValueError, match="not the name of a folder"),
        tensorboard_storage.tracker({"run_id": "../elsewhere"}).open(PROPERTIES),
    ):
        pass


@pytest.mark.parametrize("name", ["実験" * 12, "実験" * 500, "x" * 1000, "../../etc", "."])
def test_a_folder_has_a_short_name_whatever_the_run_is_called(name: str, tmp_path: Path) -> None:
    accumulator = AccumulatorConfig(device="cpu", backlog_dir=tmp_path / "backlog")
    config = TensorBoardConfig(log_dir=tmp_path / "runs", accumulator=accumulator)
    for _ in range(2):
        with tracker_from_config(config).open(RunConfig(name=name)) as run:
            run.scalar("loss", 1.0)
    folders = list((tmp_path / "runs").iterdir())
    assert len(folders) == 2
    assert all(len(folder.name.encode()) <= 120 for folder in folders)


@pytest.mark.parametrize("again", ["a", "b"])
def test_a_step_that_was_flushed_in_parts_keeps_them_all(tensorboard_storage: TensorBoardStorage, again: str) -> None:
    tracker = tensorboard_storage.tracker()
    with tracker.open(PROPERTIES) as run:
        run.set_step(1)
        for name, value in (("a", 1.0), ("b", 2.0), (again, 3.0)):
            run.scalar(name, value)
            run.flush()
    expected = {"a": 1.0, "b": 2.0, again: 3.0}
    assert tensorboard_storage.scalars(str(tracker.run_id)) == {key_of(name, 1): expected[name] for name in "ab"}


@pytest.mark.parametrize("room", [0, 1])
def test_a_run_that_was_opened_on_a_full_disk_first_has_its_texts(
    tensorboard_storage: TensorBoardStorage, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    tracker, append, left = tensorboard_storage.tracker(), tensorboard.append, iter(range(room))

    def full(*arguments: Any) -> None:
        if next(left, None) is None:
            raise OSError(28, "No space left on device")
        append(*arguments)

    monkeypatch.setattr(tensorboard, "append", full)
    with pytest.raises(OSError, match="No space left"), tracker.open(PROPERTIES):
        pass
    monkeypatch.undo()
    with tracker.open(PROPERTIES) as run:
        run.scalar("loss", 1.0)
    (folder,) = tensorboard_storage.folder.iterdir()
    assert folder.name == tracker.run_id
    assert tensorboard_storage.properties(folder.name)["hparams"] == PROPERTIES.hparams
