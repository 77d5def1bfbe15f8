"""What Lightning logs is what is stored: the same points, names, steps and values as a logger of its own is given."""

import itertools
import signal

import pytest
from lightning_oracle import Net, TwoOptimizers, Witness, counted, csv_points, data, stored, trainer_of

from d9d_tracker import read
from d9d_tracker.integrations.lightning import TrackerLogger

pytestmark = pytest.mark.filterwarnings("ignore")

TRAININGS = {
    "default checkpoint": ({}, {}),
    "an epoch's mean": ({"on_epoch": True}, {}),
    "no checkpoint": ({"on_epoch": True}, {"enable_checkpointing": False}),
    "saved in every batch": ({"on_epoch": True}, {"checkpoint": {"every_n_train_steps": 1, "save_top_k": -1}}),
    "saved in validation": ({"on_epoch": True}, {"checkpoint": {"save_on_train_epoch_end": False}}),
    "the best saved": ({}, {"checkpoint": {"monitor": "val", "save_last": True}}),
    "every fifth step": ({"on_epoch": True}, {"log_every_n_steps": 5, "checkpoint": {"every_n_train_steps": 1}}),
    "logged now and then": ({"sparse": True}, {"checkpoint": {"every_n_train_steps": 1}}),
    "accumulation": ({"on_epoch": True}, {"accumulate_grad_batches": 3, "checkpoint": {"every_n_train_steps": 1}}),
    "several validations an epoch": ({"on_epoch": True}, {"val_check_interval": 2}),
    "steps of validation": ({"val_on_step": True}, {}),
    "no sanity check": ({}, {"num_sanity_val_steps": 0}),
    "stopped within an epoch": ({"on_epoch": True}, {"max_steps": 7}),
}


MORE_VALIDATION = [("default checkpoint", 50), ("steps of validation", 50)]


@pytest.mark.parametrize(("training", "validation"), [*((name, 3) for name in TRAININGS), *MORE_VALIDATION])
def test_a_training(config, tmp_path, training, validation):
    model, options = TRAININGS[training]
    logger, witness, trainer = trainer_of(config, tmp_path, **options)
    trainer.fit(Net(**model), data(), data(validation, seed=1))
    logger.close()
    points, own = stored(tmp_path / "runs")
    assert points == witness.points() == csv_points(tmp_path)
    if "accumulate_grad_batches" not in options:
        assert own == {step: float(step) for step in range(len(own))}


def test_two_optimizers_by_hand(config, tmp_path):
    logger, witness, trainer = trainer_of(config, tmp_path, checkpoint={"every_n_train_steps": 2})
    trainer.fit(TwoOptimizers(), data(), data(2, seed=1))
    logger.close()
    points, own = stored(tmp_path / "runs")
    assert points == witness.points() == csv_points(tmp_path)
    assert own == {step: float(step) for step in range(12)}


def test_several_loaders_of_validation_and_a_step_of_the_modules_own(config, tmp_path):
    class Stepping(Net):
        def on_train_epoch_end(self):
            self.log("step", 1.0 + self.current_epoch)
            self.log("by epoch", 10.0 * self.current_epoch)

    logger, witness, trainer = trainer_of(config, tmp_path)
    trainer.fit(Stepping(), data(), [data(2, seed=1), data(3, seed=2)])
    logger.close()
    points, _ = stored(tmp_path / "runs")
    assert {"val/dataloader_idx_0", "val/dataloader_idx_1", "by epoch"} <= set(points)
    assert points == witness.points()


def test_without_the_callback(config, tmp_path):
    logger, witness, trainer = trainer_of(config, tmp_path, callback=False)
    trainer.fit(Net(on_epoch=True), data(), data(2, seed=1))
    logger.close()
    points, own = stored(tmp_path / "runs")
    assert points == witness.points()
    assert sum(own.values()) > 0  # self.logger.experiment is a run


def test_fit_twice(config, tmp_path):
    logger, witness, trainer = trainer_of(config, tmp_path)
    trainer.fit(Net(), data(), data(2, seed=1))
    trainer.fit_loop.max_epochs = 5
    trainer.fit(trainer.lightning_module, data(), data(2, seed=1))
    logger.close()
    points, own = stored(tmp_path / "runs")
    assert points == witness.points() == csv_points(tmp_path)
    assert own == {step: float(step) for step in range(20)}


def test_a_training_that_begins_anew_is_another_run(config, tmp_path):
    first, witness, trainer = trainer_of(config, tmp_path)
    first.run.set_context({"fold": "1"})
    trainer.fit(Net(), data(), data(2, seed=1))
    expected = witness.points()
    witness.path.unlink()
    _, witness, trainer = trainer_of(config, tmp_path, tracker=first)
    trainer.fit(Net(), data(), data(2, seed=2))
    first.close()
    own = {("own", ("fold", "1")): {step: float(step) for step in range(12)}}
    runs = [stored(tmp_path / "runs", run)[0] for run in range(len(read(tmp_path / "runs")))]
    assert sorted(runs, key=str) == sorted([expected | own, witness.points() | own], key=str)


@pytest.mark.parametrize("val_on_step", [False, True])
@pytest.mark.parametrize("ckpt_path", [None, "best", "last", "older"])
def test_validate_fit_and_then_validate_test_predict(config, tmp_path, ckpt_path, val_on_step):
    saving = {"monitor": "val", "save_last": True, "save_top_k": -1, "filename": "{epoch}"}
    logger, witness, trainer = trainer_of(config, tmp_path, checkpoint=saving)
    model = Net(on_epoch=True, val_on_step=val_on_step)
    trainer.validate(model, data(2, seed=1), verbose=False)
    trainer.fit(model, data(), data(2, seed=1))
    chosen = str(tmp_path / "checkpoints" / "epoch=0.ckpt") if ckpt_path == "older" else ckpt_path
    options = {"ckpt_path": chosen, "weights_only": False}
    trainer.validate(model, data(2, seed=1), verbose=False, **options)
    trainer.test(model, data(3, seed=2), verbose=False, **options)
    trainer.predict(model, data(3, seed=2), **options)
    assert stored_after_flush(logger, tmp_path)[0] == witness.points()
    trainer.fit_loop.max_epochs = 4
    trainer.fit(model, data(), data(2, seed=1))
    logger.close()
    points, own = stored(tmp_path / "runs")
    assert points == witness.points() == csv_points(tmp_path)
    assert own == {step: own[step] for step in range(16)}


def stored_after_flush(logger, folder):
    logger.run.flush()
    return stored(folder / "runs")


@pytest.mark.parametrize("stage", ["validate", "test", "predict"])
def test_another_life_that_only_looks_leaves_the_run_as_it_is(config, tmp_path, stage):
    logger, witness, trainer = trainer_of(config, tmp_path, checkpoint={"save_top_k": -1, "filename": "{epoch}"})
    trainer.fit(Net(), data(), data(2, seed=1))
    logger.close()
    before = stored(tmp_path / "runs", 0)
    assert before[0] == witness.points()
    witness.path.unlink()
    tracker = TrackerLogger(config, name="look")
    logger, witness, trainer = trainer_of(config, tmp_path, tracker=tracker, checkpoint={})
    options = {"verbose": False} if stage != "predict" else {}
    ckpt_path = tmp_path / "checkpoints" / "epoch=0.ckpt"
    getattr(trainer, stage)(Net(), data(3, seed=2), ckpt_path=ckpt_path, weights_only=False, **options)
    logger.close()
    runs = {run.name: stored(tmp_path / "runs", index) for index, run in enumerate(read(tmp_path / "runs"))}
    assert runs.pop("line") == before
    assert [points for points, _ in runs.values()] == ([] if stage == "predict" else [witness.points()])


SAVING = {
    "at the epoch's end": {"save_last": True},
    "in every batch": {"every_n_train_steps": 1, "save_last": True},
    "every third batch": {"every_n_train_steps": 3, "save_last": True},
}


ENDS = [
    *itertools.product([RuntimeError, KeyboardInterrupt], SAVING, [1, 2]),
    ("SIGKILL", "in every batch", 1),
    *(pytest.param("SIGKILL", saving, 2, marks=pytest.mark.slow) for saving in SAVING),
]


@pytest.mark.parametrize(("error", "saving", "every"), ENDS)
def test_a_life_that_ends_and_another_that_goes_on(config, tmp_path, forks, error, saving, every):
    options = {"checkpoint": SAVING[saving], "log_every_n_steps": every}
    if error == "SIGKILL":
        assert forks.run(tmp_path / "output", "be_killed", tmp_path, options, 10) == -signal.SIGKILL
    else:
        logger, _, trainer = trainer_of(config, tmp_path, **options)
        with pytest.raises((error, SystemExit)):
            trainer.fit(Net(on_epoch=True, fails_at=10, error=error), data(), data(2, seed=1))
        assert not logger.tracked.is_open
    before = Witness(tmp_path / "witness.jsonl")
    last = {"at the epoch's end": 8, "in every batch": 10, "every third batch": 9}[saving]
    points_before = before.points(before_step=last)
    before.path.unlink()
    logger, witness, trainer = trainer_of(config, tmp_path, max_epochs=4, **options)
    trainer.fit(Net(on_epoch=True), data(), data(2, seed=1), ckpt_path="last", weights_only=False)
    logger.close()
    points, own = stored(tmp_path / "runs")
    assert points == {name: {**points_before.get(name, {}), **new} for name, new in witness.points().items()}
    assert own == {step: float(step) for step in range(16)}


def test_two_ranks_whose_mean_is_stored_and_which_go_on_without_a_false_word(tmp_path, forks):
    def live(steps, *ckpt_path):
        output = tmp_path / "output"
        forks.run_ranks(output, "be_one_of_two", tmp_path, steps, *ckpt_path)
        assert "the state holds" not in output.read_text()

    def means():
        first, second = (Witness(tmp_path / f"witness-{rank}.jsonl").points() for rank in range(2))
        for rank in range(2):
            (tmp_path / f"witness-{rank}.jsonl").unlink()
        return {
            name: {step: (value + second[name][step]) / 2 for step, value in points.items()}
            for name, points in first.items()
        }

    live(9)
    before = means()
    assert stored(tmp_path / "runs")[0] == before
    live(11, str(tmp_path / "checkpoints" / "step=6.ckpt"))
    before = {name: {step: value for step, value in points.items() if step < 6} for name, points in before.items()}
    points, own = stored(tmp_path / "runs")
    assert points == {name: {**before.get(name, {}), **new} for name, new in means().items()}
    assert own == {step: float(step) for step in range(11)}
    assert counted(read(tmp_path / "runs")[0].histograms("values")) == {1.0: 11 * 3, 2.0: 11 * 3}
