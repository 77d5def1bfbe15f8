"""Blocks of ``run.context``: each holds in its own task and thread, on any run, and is gone when it is left."""

import asyncio
import threading

import pytest
import torch

from d9d_tracker import RunConfig


@pytest.fixture(params=["accumulating", "bare"])
def opened(recorded, request):
    """An open run, and what tells which records it has written."""
    tracker = recorded()
    bare = request.param == "bare"
    with tracker.backend.open(RunConfig(name="bare")) if bare else tracker.open() as run:
        if bare:
            from d9d_tracker.bare_run import BareRun
            from d9d_tracker.sink import LoopSink

            run = BareRun([LoopSink(run)])

        def sums():
            if not bare:
                run.flush()
            found = {}
            for record in tracker.run.records:
                key = (record.name, record.context.get("stage"))
                found[key] = found.get(key, 0.0) + record.value
            return found

        yield run, sums


def count(run, name):
    if hasattr(run, "buffers"):
        run.scalar(name, 1.0, reduce="sum")
    else:
        run.scalar(name, 1.0)


def test_blocks_of_two_tasks_overlap_and_keep_to_their_own(opened):
    run, sums = opened

    async def work(stage):
        with run.context(stage=stage):
            for _ in range(10):
                count(run, "n")
                await asyncio.sleep(0)

    async def both():
        await asyncio.gather(work("train"), work("eval"))

    asyncio.run(both())
    count(run, "later")
    assert run.get_context() == {}
    assert sums() == {("n", "train"): 10.0, ("n", "eval"): 10.0, ("later", None): 1.0}


def test_blocks_of_two_threads_overlap_and_keep_to_their_own(opened):
    run, sums = opened
    inside, logged, left = threading.Barrier(2), threading.Barrier(2), threading.Event()

    def work(stage):
        with run.context(stage=stage):
            inside.wait()
            count(run, "n")
            logged.wait()
            if stage == "eval":
                left.wait()
        left.set()

    threads = [threading.Thread(target=work, args=(stage,)) for stage in ("train", "eval")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    count(run, "later")
    assert run.get_context() == {}
    assert sums() == {("n", "train"): 1.0, ("n", "eval"): 1.0, ("later", None): 1.0}


def test_a_block_tags_nothing_of_a_thread_that_ran_before_it(opened):
    run, sums = opened
    begin, done = threading.Event(), threading.Event()

    def environment():
        begin.wait()
        count(run, "reward")
        done.set()

    thread = threading.Thread(target=environment)
    thread.start()
    run.set_step(0)
    with run.context(stage="eval"):
        begin.set()
        done.wait()
        count(run, "loss")
    thread.join()
    assert sums() == {("reward", None): 1.0, ("loss", "eval"): 1.0}


def test_a_context_that_is_set_within_a_block_holds_until_its_end(opened):
    run, sums = opened
    run.set_context({"stage": "train"})
    with run.context(fold="1"):
        run.set_context({"stage": "eval"})
        count(run, "n")
        with run.context(fold="2"):
            assert run.get_context() == {"stage": "eval", "fold": "2"}
    count(run, "n")
    assert run.get_context() == {"stage": "train"}
    assert sums() == {("n", "eval"): 1.0, ("n", "train"): 1.0}


def test_a_block_may_be_left_in_another_task(opened):
    run, _ = opened

    async def values():
        with run.context(stage="eval"):
            yield 1

    async def main():
        generator = values()
        await asyncio.create_task(anext(generator))
        await asyncio.create_task(generator.aclose())
        assert run.get_context() == {}

    asyncio.run(main())
    assert run.get_context() == {}


def test_handles_keep_to_the_block_of_their_own_thread(recorded):
    tracker = recorded()
    with tracker.open() as run:
        scalar, bins = run.scalar_series("reward"), run.bins_series("actions")

        def environment():
            scalar.scalar(1.0)
            bins.bins(torch.ones(2))
            with run.context(stage="environment"):
                scalar.scalar(2.0)
                scalar.scalar(torch.full((1, 1), 4.0, dtype=torch.float16), weight=torch.ones(1))
                bins.bins(torch.ones(3))

        run.set_step(0)
        with run.context(stage="eval"):
            thread = threading.Thread(target=environment)
            thread.start()
            thread.join()
            scalar.scalar(8.0)
            bins.bins(torch.ones(4))
    stages = {"eval": (8.0, 4), "environment": (3.0, 3), None: (1.0, 2)}
    for stage, (value, elements) in stages.items():
        context = {} if stage is None else {"stage": stage}
        assert tracker.run.points("reward", **context) == {0: value}
        assert sum(one.count for one in tracker.run.histograms("actions", **context).values()) == elements
