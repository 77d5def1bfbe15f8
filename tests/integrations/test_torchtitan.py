"""torchtitan's MetricsProcessor logs to a run on the rank that logs, beside its own loggers."""

from types import SimpleNamespace

import pytest

from d9d_tracker import RunConfig, tracker_from_config
from d9d_tracker.integrations.torchtitan import TrackerLogger, _rank_of_the_loss, attach


def test_it_logs_numbers_at_torchtitans_steps(config, stored):
    logger = TrackerLogger(config, name="llama3", hparams={"lr": 0.1})
    for step in (1, 10, 20):
        logger.log({"loss_metrics/global_avg_loss": 1 / step, "note": "text"}, step)
    logger.close()
    run, points = stored()
    assert (run["name"], run["hparams"]) == ("llama3", {"lr": 0.1})
    assert points == {("loss_metrics/global_avg_loss",): {1: 1.0, 10: 0.1, 20: 0.05}}


def test_a_run_that_is_open_is_used_and_left_open(config, stored):
    with tracker_from_config(config).open(RunConfig(name="mine")) as run:
        logger = TrackerLogger(run)
        for step in range(1, 4):
            run.set_step(step)
            run.scalar("every step", step)
            if step == 3:
                logger.log({"loss": 1.0}, step)
        logger.close()
    assert stored()[1] == {("every step",): {1: 1.0, 2: 2.0, 3: 3.0}, ("loss",): {3: 1.0}}


def test_a_run_that_was_loaded_before_goes_on(config, stored):
    tracker = tracker_from_config(config)
    logger = TrackerLogger(tracker)
    for step in (1, 10, 20):
        logger.log({"loss": float(step)}, step)
    state = tracker.state_dict()
    logger.log({"loss": 0.0}, 30)
    logger.close()
    tracker = tracker_from_config(config)
    tracker.load_state_dict(state)
    logger = TrackerLogger(tracker)
    logger.log({"loss": 30.0}, 30)
    logger.close()
    assert stored()[1] == {("loss",): {1: 1.0, 10: 10.0, 20: 20.0, 30: 30.0}}


@pytest.fixture
def processor():
    """torchtitan's own processor, of its own classes, as far as it logs; ``rank`` and degrees are the test's."""
    metrics = pytest.importorskip(
        "torchtitan.components.metrics", reason="torchtitan is not installed: pip install torchtitan"
    )

    def make(save_for_all_ranks=False, pp=1, world_size=1):
        made = object.__new__(metrics.MetricsProcessor)
        made.config = metrics.MetricsProcessor.Config(save_for_all_ranks=save_for_all_ranks)
        made.parallel_dims = SimpleNamespace(pp_enabled=pp > 1, pp=pp, world_size=world_size)
        made.logger = metrics.LoggerContainer()
        return made

    return make


@pytest.fixture
def as_rank(monkeypatch):
    def pretend(rank):
        monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
        monkeypatch.setattr("torch.distributed.get_rank", lambda: rank)

    return pretend


def test_its_own_container_calls_it_beside_others(config, stored, processor):
    from torchtitan.components.metrics import BaseLogger, LoggerContainer

    seen = []

    class Other(BaseLogger):
        def log(self, metrics, step):
            seen.append(step)

    made = processor()
    made.logger = Other()
    logger = attach(made, config)
    assert logger is not None
    assert isinstance(made.logger, LoggerContainer)
    made.logger.log({"loss": 2.0}, 10)
    made.close()
    assert seen == [10]
    assert stored()[1] == {("loss",): {10: 2.0}}
    assert not logger.tracked.is_open


@pytest.mark.parametrize(("schedule", "loss_at"), [("1F1B", 4), ("ZBVZeroBubble", 0)])
def test_the_rank_that_has_the_loss_logs(config, processor, as_rank, schedule, loss_at):
    from torchtitan.components.metrics import _get_metrics_rank

    dims = processor(pp=3, world_size=6).parallel_dims
    assert _get_metrics_rank(parallel_dims=dims, pp_schedule=schedule) == loss_at
    for rank in range(6):
        as_rank(rank)
        assert (attach(processor(pp=3, world_size=6), config, pp_schedule=schedule) is None) == (rank != loss_at)


def test_save_for_all_ranks_is_honoured(config, processor, as_rank, monkeypatch, tmp_path):
    from d9d_tracker import read

    for rank in range(2):
        made = processor(save_for_all_ranks=True, world_size=2)
        as_rank(rank)
        logger = attach(made, config, name="llama3")
        assert logger is not None
        monkeypatch.undo()
        made.logger.log({"loss": float(rank)}, 10)
        made.close()
    runs = {run.name: run.scalars("loss").values.tolist() for run in read(tmp_path / "runs")}
    assert runs == {"llama3 rank 0": [0.0], "llama3 rank 1": [1.0]}


def test_save_for_all_ranks_tags_in_an_open_run(config, stored, processor, as_rank, monkeypatch):
    with tracker_from_config(config).open(RunConfig(name="all")) as run:
        run.set_step(10)
        made = processor(save_for_all_ranks=True, world_size=2)
        as_rank(1)
        attach(made, run, hparams={"lr": 0.1})
        monkeypatch.undo()
        made.logger.log({"loss": 1.0}, 10)
    line, points = stored()
    assert (line["hparams"], points) == ({"lr": 0.1}, {("loss", ("rank", "1")): {10: 1.0}})


@pytest.mark.parametrize(("pipelines", "schedule", "rank"), [(3, "1F1B", 4), (3, "ZBVZeroBubble", 0), (1, "1F1B", 0)])
def test_the_loss_is_on_the_first_rank_of_the_last_stage(config, as_rank, pipelines, schedule, rank):
    dims = SimpleNamespace(pp_enabled=pipelines > 1, pp=pipelines, world_size=6)
    assert _rank_of_the_loss(dims, schedule) == rank
    processor = SimpleNamespace(config=SimpleNamespace(save_for_all_ranks=False), parallel_dims=dims)
    for other in set(range(6)) - {rank}:
        as_rank(other)
        assert attach(processor, config, pp_schedule=schedule) is None
