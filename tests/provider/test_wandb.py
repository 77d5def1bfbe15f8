"""What only Weights & Biases can do or not, offline."""

from pathlib import Path

import numpy as np
import pytest
import torch
import wandb

from d9d_tracker.base import RunConfig
from d9d_tracker.provider.wandb import WandbConfig
from d9d_tracker.provider.wandb import tracker as wandb_tracker
from d9d_tracker.provider.wandb.log_file import LogFile
from d9d_tracker.provider.wandb.tracker import WandbTracker
from d9d_tracker.record import Histogram, Record

from .conftest import WandbStorage, key_of

PROPERTIES = RunConfig(name="a run", hparams={"lr": 0.1})


def test_histograms_keep_true_edges(wandb_storage: WandbStorage) -> None:
    values = torch.randn(5000, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).exp().pow(9)
    values[::2] *= -1
    histogram = Histogram.from_values(values)
    assert len(histogram.counts) > 512
    tracker = wandb_storage.tracker()
    with tracker.open(PROPERTIES) as run:
        run.histogram("grad", histogram)
    row = wandb_storage.rows(str(tracker.run_id))[0]
    edges, counts = np.array(row["grad.bins"]), np.array(row["grad.values"])
    assert (edges[0], edges[-1]) == (values.min(), values.max())
    assert set(edges[1:-1]) <= set(histogram.edges)
    below = np.searchsorted(histogram.edges, edges[1:-1])
    np.testing.assert_array_equal(np.cumsum(counts)[:-1], np.cumsum(histogram.counts)[below - 1])


def test_a_step_is_one_row(wandb_storage: WandbStorage) -> None:
    tracker = wandb_storage.tracker()
    with tracker.open(PROPERTIES) as run:
        for step in (0, 5, 6):
            run.set_step(step)
            for series in range(10):
                run.scalar(f"series{series}", step, {"stage": "train"})
    rows = wandb_storage.rows(str(tracker.run_id))
    assert list(rows) == [0, 5, 6]
    assert rows[5] == {f"series{series}/stage=train": 5 for series in range(10)}


def test_flush_waits_until_the_log_holds_everything(wandb_storage: WandbStorage) -> None:
    tracker = wandb_storage.tracker()
    with tracker.open(PROPERTIES) as run:
        for step in range(200):
            run.set_step(step)
            run.scalar("loss", step)
            if step % 50 == 49:
                run.flush()
                (path,) = wandb_storage.folder.glob("wandb/offline-run-*/*.wandb")
                assert [found for found, _ in LogFile(path).new_steps()] == list(range(step + 1))


def test_a_flush_that_W_and_B_does_not_answer_fails_and_is_made_up_for(  # noqa: N802 - its name
    wandb_storage: WandbStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = wandb_storage.tracker()
    with tracker.open(PROPERTIES) as run:
        run.scalar("loss", 1)
        with monkeypatch.context() as patch:
            patch.setattr(wandb_tracker, "_WRITE_TIMEOUT", 0.1)
            patch.setattr(LogFile, "new_steps", lambda log: iter(()))
            with pytest.raises(TimeoutError, match=r"step 0 of run .* is not in W&B's log"):
                run.flush()
        run.flush()
    assert wandb_storage.scalars(str(tracker.run_id)) == {key_of("loss", 0): 1.0}


def test_a_step_that_was_flushed_takes_nothing_more(wandb_storage: WandbStorage) -> None:
    tracker = wandb_storage.tracker()
    with tracker.open(PROPERTIES) as run:
        run.scalar("loss", 1)
        run.flush()
        with pytest.raises(ValueError, match="'loss' at step 0: W&B takes nothing more"):
            run.scalar("loss", 2)
        run.set_step(1)
        run.scalar("loss", 3)
    assert wandb_storage.scalars(str(tracker.run_id)) == {key_of("loss", 0): 1.0, key_of("loss", 1): 3.0}


def test_long_rows_are_found_again(wandb_storage: WandbStorage) -> None:
    """W&B's log is made of blocks of 32 KiB, over which longer records are spread."""
    tracker = wandb_storage.tracker()
    with tracker.open(PROPERTIES) as run:
        for step in range(6):
            run.set_step(step)
            for series in range(700):
                run.scalar(f"a series of a rather long name, number {series}", step + series / 7)
            run.flush()
    with wandb_storage.tracker(tracker.state_dict()).open(PROPERTIES) as run:
        run.rewind(3)
        run.set_step(3)
        run.scalar("loss", 1)
    rows = wandb_storage.rows(str(tracker.run_id))
    assert {step: len(row) for step, row in rows.items()} == {0: 700, 1: 700, 2: 700, 3: 1}


def test_disabled_writes_nothing(quiet_wandb: object, wandb_storage: WandbStorage) -> None:
    config = WandbConfig(project="tests", mode="disabled", dir=wandb_storage.folder, accumulator=None)
    with WandbTracker.from_config(config).open(PROPERTIES) as run:
        run.scalar("loss", 1)
        run.flush()
    assert not list(wandb_storage.folder.glob("wandb/*run*/*.wandb"))


def test_the_environment_says_what_the_configuration_does_not(
    wandb_storage: WandbStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = {
        "WANDB_MODE": "dryrun",
        "WANDB_PROJECT": "a project",
        "WANDB_RUN_GROUP": "a group",
        "WANDB_TAGS": "one,two",
        "WANDB_DIR": str(tmp_path),
        "WANDB_RUN_ID": "chosen",
    }
    for name, value in said.items():
        monkeypatch.setenv(name, value)
    wandb.teardown()  # it has read the environment already
    tracker = WandbTracker(WandbConfig(accumulator=None))
    with tracker.open(PROPERTIES) as run:
        found = run.sdk
        assert (found.project, found.group, found.tags) == ("a project", "a group", ("one", "two"))
        run.scalar("loss", 1.0)
    assert tracker.run_id == "chosen"
    assert wandb_storage.scalars("chosen") == {key_of("loss", 0): 1.0}
    wandb.teardown()
    monkeypatch.setenv("WANDB_MODE", "sideways")
    with pytest.raises(ValueError, match="WANDB_MODE='sideways' is not one of online"), tracker.open(PROPERTIES):
        pass


def test_who_has_said_wandb_offline_is_not_online(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path))
    (tmp_path / "settings").write_text("[default]\nmode = offline\n")
    wandb.teardown()  # it has read the settings already
    with WandbTracker(WandbConfig(project="x", dir=tmp_path, accumulator=None)).open(PROPERTIES) as run:
        assert run.sdk.settings.mode == "offline"
    wandb.teardown()


def test_names_that_are_W_and_B_s_own_are_kept_apart(  # noqa: N802 - its name
    wandb_storage: WandbStorage, caplog: pytest.LogCaptureFixture
) -> None:
    tracker = wandb_storage.tracker()
    with tracker.open(PROPERTIES) as run:
        run.write([Record("_step", 3, {}, 77.0, 1e9), Record("_timestamp", 3, {}, 78.0, 1e9)])
    records = wandb_storage.records(str(tracker.run_id))
    (item,) = [record["history"]["item"] for record in records if record["type"] == "history"]
    assert (item["_step~"], item["_timestamp~"], item["_timestamp"]) == (77.0, 78.0, 1e9)
    assert "'_step' is written as '_step~'" in caplog.text


def test_the_earlier_lives_of_a_run_are_found_in_a_hidden_folder_too(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / ".wandb").mkdir()  # which W&B then writes to
    storage = WandbStorage(tmp_path)
    tracker = storage.tracker()
    with tracker.open(PROPERTIES) as run:
        run.scalar("loss", 1.0)
    with storage.tracker(tracker.state_dict()).open(PROPERTIES) as run:
        run.set_step(0)
        run.scalar("loss", 2.0)
    logs = sorted(tmp_path.glob(".wandb/offline-run-*/*.wandb"))
    assert [[step for step, _ in LogFile(path).new_steps()] for path in logs] == [[], [0]]
    assert "earlier files are not in" not in caplog.text
