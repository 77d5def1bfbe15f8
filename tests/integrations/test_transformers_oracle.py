"""What the Trainer logs is what is stored: the same points, names, steps and values as in its ``log_history``."""

import itertools

import pytest
import transformers_oracle
from lightning_oracle import counted
from transformers_oracle import Killing, history, stored, trainer_of

from d9d_tracker import read
from d9d_tracker.integrations.transformers import TrackerCallback

pytestmark = pytest.mark.filterwarnings("ignore")

TRAININGS = {
    "every step": {"logging_steps": 1},
    "sparse": {"logging_steps": 5, "logging_first_step": True},
    "by epoch": {"logging_strategy": "epoch"},
    "accumulation": {"gradient_accumulation_steps": 3},
    "evaluation at the start": {"eval_on_start": True},
    "the best model at the end": {
        "eval_strategy": "steps", "eval_steps": 4, "save_strategy": "steps", "save_steps": 4,
        "load_best_model_at_end": True, "learning_rate": 0.3,
    },
    "the best saved": {"save_strategy": "best", "metric_for_best_model": "loss", "eval_strategy": "epoch"},
    "nothing saved": {"save_strategy": "no"},
}  # fmt: skip


BEFORE = [("evaluation at the start", True)]


@pytest.mark.parametrize(("training", "before"), [*((name, False) for name in TRAININGS), *BEFORE])
def test_a_training_with_evaluations_before_and_after(config, tmp_path, training, before):
    callback = TrackerCallback(config, name="line")
    trainer = trainer_of(callback, tmp_path / "out", **TRAININGS[training])
    expected = {}
    if before:
        trainer.evaluate()
        expected = history(trainer)
    trainer.train()
    trainer.evaluate()
    trainer.evaluate(metric_key_prefix="test")
    callback.close()
    (run,) = read(tmp_path / "runs")
    assert (run.name, run.hparams["args"]["learning_rate"]) == ("line", trainer.args.learning_rate)
    assert stored(run) == {
        name: {**expected.get(name, {}), **points} for name, points in {**expected, **history(trainer)}.items()
    }


def test_an_evaluation_alone_has_name_and_hyperparameters(config, tmp_path):
    callback = TrackerCallback(config)
    trainer = trainer_of(callback, tmp_path / "out", run_name="by its arguments")
    trainer.evaluate()
    callback.close()
    (run,) = read(tmp_path / "runs")
    assert (run.name, run.hparams["args"]["learning_rate"]) == ("by its arguments", 0.1)
    assert stored(run) == history(trainer)


@pytest.mark.parametrize(
    ("end", "resumes"),
    [
        *itertools.product(["RuntimeError", "KeyboardInterrupt"], ["the last", "by name", "restored callbacks"]),
        ("SIGKILL", "the last"),
    ],
)
def test_a_life_that_ends_and_another_that_goes_on(config, tmp_path, forks, end, resumes):
    options = {"save_strategy": "steps", "save_steps": 4, "eval_strategy": "steps", "eval_steps": 2}
    if end == "SIGKILL":
        assert forks.run(tmp_path / "output", "be_killed", tmp_path, options, 10) == -9
    else:
        callback = TrackerCallback(config)
        error = {"RuntimeError": RuntimeError, "KeyboardInterrupt": KeyboardInterrupt}[end]
        with pytest.raises(error):
            trainer_of(callback, tmp_path / "out", killing=Killing(10, error), **options).train()
        assert callback.tracked.is_open  # the Trainer says nothing; a new callback takes the run over
    if resumes == "restored callbacks":
        options["restore_callback_states_from_checkpoint"] = True
    callback = TrackerCallback(config)
    trainer = trainer_of(callback, tmp_path / "out", **options)
    trainer.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-8") if resumes == "by name" else True)
    trainer.evaluate()
    callback.close()
    (run,) = read(tmp_path / "runs")
    # The file of the checkpoint has the history of before it.
    assert stored(run) == history(trainer)
    assert run.scalars("own").steps.tolist() == list(range(1, 19))


def test_the_checkpoint_of_another_folder_is_known(config, tmp_path):
    options = {"save_strategy": "steps", "save_steps": 6, "max_steps": 12}
    for name in ("a", "b"):
        callback = TrackerCallback(config, name=name)
        trainer_of(callback, tmp_path / name, **options).train()
        callback.close()
    before = {run.name: stored(run) for run in read(tmp_path / "runs")}
    callback = TrackerCallback(config, name="b")
    trainer = trainer_of(callback, tmp_path / "b", **{**options, "max_steps": 15})
    trainer.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-6"))
    callback.close()
    after = {run.name: stored(run) for run in read(tmp_path / "runs")}
    assert after["b"] == before["b"]
    assert after["a"] == history(trainer)


def test_a_checkpoint_that_was_moved_is_a_new_run_unless_it_is_named(config, tmp_path, caplog):
    options = {"save_strategy": "steps", "save_steps": 6, "max_steps": 12}
    callback = TrackerCallback(config, name="a")
    trainer_of(callback, tmp_path / "a", **options).train()
    callback.close()
    moved = (tmp_path / "a" / "checkpoint-6").rename(tmp_path / "moved")
    for checkpoint in (None, moved):
        callback = TrackerCallback(config, name="new", checkpoint=checkpoint)
        trainer = trainer_of(callback, tmp_path / "b", **{**options, "max_steps": 9})
        trainer.train(resume_from_checkpoint=str(moved))
        callback.close()
        assert ("Pass TrackerCallback(..., checkpoint=FOLDER)" in caplog.text) == (checkpoint is None)
        caplog.clear()
    assert {run.name: max(stored(run)["loss"]) for run in read(tmp_path / "runs")} == {"new": 9, "a": 9}


def test_a_checkpoint_that_knows_no_run_is_trained_on(config, tmp_path, caplog):
    options = {"save_strategy": "steps", "save_steps": 6, "max_steps": 6}
    trainer = trainer_of(None, tmp_path / "out", **options)
    trainer.train()
    callback = TrackerCallback(config)
    trainer = trainer_of(callback, tmp_path / "out", **{**options, "max_steps": 18})
    trainer.train(resume_from_checkpoint=True)  # and saves again
    callback.close()
    assert "names none" in caplog.text
    (run,) = read(tmp_path / "runs")
    assert run.scalars("loss").steps.tolist() == list(range(7, 19))
    assert list((tmp_path / "out" / "checkpoint-12").glob("d9d_tracker-*.pt"))


def test_trials_keep_their_states_apart(config, tmp_path):
    class Trials(transformers_oracle.Trainer):
        number = 0

        def _get_output_dir(self, trial):
            return f"{self.args.output_dir}/run-{self.number}"

    options = {"save_strategy": "steps", "save_steps": 6, "max_steps": 12}
    callback = TrackerCallback(config, name="trial")
    trainer = trainer_of(callback, tmp_path / "out", trainer=Trials, **options)
    histories = []
    for trainer.number in range(3):
        trainer.train()
        histories.append(history(trainer))
    callback.close()
    runs = [stored(run) for run in read(tmp_path / "runs")]
    assert sorted(runs, key=str) == sorted(histories, key=str)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"run-0", "run-1", "run-2"}
    states = list((tmp_path / "out").glob("*/checkpoint-*/d9d_tracker-*.pt"))
    assert len(states) == 6
    assert len({path.name for path in states}) == 3
    callback = TrackerCallback(config)
    trainer = trainer_of(callback, tmp_path / "out", trainer=Trials, **{**options, "max_steps": 14})
    trainer.train(resume_from_checkpoint=str(tmp_path / "out" / "run-1" / "checkpoint-6"))
    callback.close()
    assert history(trainer) in [stored(run) for run in read(tmp_path / "runs")]
    assert len(read(tmp_path / "runs")) == 3


def test_two_ranks(tmp_path, forks):
    def live(*arguments):
        forks.run_ranks(tmp_path / "output", "be_one_of_two", tmp_path, *arguments)
        (run,) = read(tmp_path / "runs")
        expected = transformers_oracle.read_history(tmp_path)
        # The ranks' own times differ, and their mean is stored.
        times = {name for name in expected if name.endswith(("_runtime", "_per_second", "_time"))}
        assert stored(run).keys() == expected.keys()
        assert {name: points for name, points in stored(run).items() if name not in times} == {
            name: points for name, points in expected.items() if name not in times
        }
        return counted(run.histograms("values"))

    live(9)
    assert live(11, True) == {1.0: 11 * 3, 2.0: 11 * 3}


def test_rank_0_alone_goes_on_without_a_false_word(tmp_path, forks):
    for steps, resume in ((7, False), (9, True)):
        forks.run_ranks(tmp_path / "output", "be_one_of_two", tmp_path, steps, resume, "rank0")
    (run,) = read(tmp_path / "runs")
    assert run.scalars("loss").steps.tolist() == list(range(1, 10))
    assert "this is a new run" not in (tmp_path / "output").read_text()


@pytest.mark.parametrize("restores", [False, True])
def test_two_callbacks_go_on_with_a_run_each(config, tmp_path, restores):
    def train(steps, resume=None):
        callbacks = [
            TrackerCallback(config.model_copy(update={"path": tmp_path / name}), name=name) for name in ("one", "other")
        ]
        options = {"save_strategy": "steps", "save_steps": 3, "restore_callback_states_from_checkpoint": restores}
        trainer = trainer_of(callbacks[0], tmp_path / "out", max_steps=steps, **options)
        trainer.add_callback(callbacks[1])
        trainer.train(resume_from_checkpoint=resume)
        for callback in callbacks:
            callback.close()
        return {name: points for name, points in history(trainer).items() if name != "total_flos"}

    train(7)  # the Trainer's PrinterCallback takes that out, before it comes to a callback that was added
    expected = train(9, resume=str(tmp_path / "out" / "checkpoint-6"))
    for name in ("one", "other"):
        (run,) = read(tmp_path / name)
        assert {one: points for one, points in stored(run).items() if one != "total_flos"} == expected


def test_a_callback_needs_a_tracker():
    with pytest.raises(TypeError, match="tracker"):
        eval("TrackerCallback()")
