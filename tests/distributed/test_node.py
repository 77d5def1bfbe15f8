"""Nodes of a tree over socket pairs, in one process: what they merge, and what they do when others fail."""

import logging
import socket
import threading
import time

import pytest
from windows import window_of

from d9d_tracker.accumulator.distributed import tree
from d9d_tracker.accumulator.distributed.link import FrameReader, FrameSender
from d9d_tracker.accumulator.distributed.node import Node
from d9d_tracker.accumulator.distributed.part import Part
from d9d_tracker.accumulator.finish import records


class Nodes:
    """All nodes of a job, connected."""

    def __init__(self, size: int, timeout: float = 10.0):
        self.size = size
        senders, readers = {}, {rank: {} for rank in range(size)}
        self.sockets = {}
        for rank in range(1, size):
            up, down = socket.socketpair()
            senders[rank] = FrameSender(up, 1 << 20, f"rank {tree.parent(rank)}")
            readers[tree.parent(rank)][rank] = FrameReader(down)
            self.sockets[rank] = up
        self.nodes = [Node(rank, size, senders.get(rank), readers[rank], timeout) for rank in range(size)]
        self.senders, self.readers = senders, readers

    def reduce(self, values: dict, ended: bool = True, reduce: str = "sum", **kwargs) -> dict:
        """Have the given ranks close a window, the highest first, and return what rank 0 gets."""
        window = None
        for rank in sorted(values, reverse=True):
            window = self.nodes[rank].reduce(window_of(values[rank], reduce=reduce, **kwargs), ended, lambda: False)
            assert (window is None) == (rank > 0)
        return points(window)

    def finish(self, ranks: list[int]) -> list[dict]:
        rest = []
        for rank in sorted(ranks, reverse=True):
            rest = [points(window) for window in self.nodes[rank].finish()]
        return rest

    def close(self):
        for node in self.nodes:
            node.close()


@pytest.fixture
def nodes():
    made = []

    def make(*args, **kwargs):
        made.append(Nodes(*args, **kwargs))
        return made[-1]

    before = threading.active_count()
    yield make
    for one in made:
        for up in one.sockets.values():
            up.close()
        one.close()
    assert threading.active_count() == before


def points(window) -> dict:
    return {} if window is None else {(r.name, r.step): r.value for r in records(window)}


def at(step: int, value: float) -> dict:
    return {step: {"a": [value]}}


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 8, 11])
def test_the_writer_gets_the_values_of_all_ranks(nodes, size):
    job = nodes(size)
    for step in range(3):
        assert job.reduce({rank: at(step, 2.0**rank) for rank in range(size)}) == {("a", step): 2.0**size - 1}
    assert job.reduce({rank: at(3, rank) for rank in range(size)}, reduce="last") == {("a", 3): size - 1}
    assert job.finish(list(range(size))) == []


def test_one_message_per_rank_and_window(nodes):
    job = nodes(8)
    for step in range(5):
        job.reduce({rank: at(step, 1.0) for rank in range(8)})
    assert [sender.frames for sender in job.senders.values()] == [5] * 7


def test_a_silent_rank_is_named_and_the_rest_is_kept(nodes, caplog):
    job = nodes(4, timeout=0.4)
    assert job.reduce({rank: at(0, 2.0**rank) for rank in (0, 1, 2, 3)}) == {("a", 0): 15.0}
    assert job.reduce({rank: at(1, 2.0**rank) for rank in (0, 1, 2)}) == {("a", 1): 7.0}
    assert "rank 3 sent nothing in time: going on without rank 3" in caplog.text
    assert "window 0 and on: no values from rank 3" in caplog.text
    caplog.clear()
    assert job.reduce({rank: at(2, 2.0**rank) for rank in (0, 1, 2)}) == {("a", 2): 7.0}
    assert caplog.text == ""  # once is enough
    for step in (1, 2):
        job.nodes[3].reduce(window_of(at(step, 8.0), reduce="sum"), True, lambda: False)
    assert job.reduce({rank: at(3, 2.0**rank) for rank in (0, 1, 2, 3)}) == {("a", 3): 15.0}
    assert (
        "rank 3: 1 points for steps up to 2 arrived after they were written without them, and are lost" in caplog.text
    )
    assert "values from rank 3 again" in caplog.text
    assert "different steps" not in caplog.text


def test_the_ranks_behind_a_silent_rank_are_named_too(nodes, caplog):
    job = nodes(4, timeout=0.2)
    assert job.reduce({0: at(0, 1.0), 1: at(0, 2.0)}) == {("a", 0): 3.0}
    assert "rank 2 sent nothing in time: going on without ranks 2-3" in caplog.text
    assert "no values from ranks 2-3" in caplog.text


def test_a_broken_connection_is_noticed_at_once(nodes, caplog):
    job = nodes(4, timeout=60.0)
    job.reduce({rank: at(0, 2.0**rank) for rank in range(4)})
    time.sleep(0.05)
    job.sockets[2].shutdown(socket.SHUT_RDWR)
    start = time.monotonic()
    assert job.reduce({0: at(1, 1.0), 1: at(1, 2.0)}) == {("a", 1): 3.0}
    assert time.monotonic() - start < 30.0  # not the timeout
    assert "rank 2 is gone" in caplog.text
    assert "no values from ranks 2-3" in caplog.text


def test_a_rank_whose_parent_is_gone_goes_on(nodes, caplog):
    job = nodes(2)
    job.readers[0][1].close()
    for step in range(3):
        assert job.nodes[1].reduce(window_of(at(step, 1.0)), True, lambda: False) is None
    job.nodes[1].close()
    assert caplog.text.count("rank 0 is gone") == 1
    assert job.senders[1].dropped == 3


def test_a_parent_that_does_not_read_costs_bounded_memory_and_time(nodes, caplog):
    job = nodes(2, timeout=0.5)
    big = window_of({}, {0: {"h": [1.0]}})
    for step in range(1000):  # 16 MB; the limit is 1 MB
        big.steps = [step]
        job.nodes[1].reduce(big, True, lambda: False)
    held = sum(size for size, _ in job.senders[1]._items)
    assert held <= 1 << 20
    job.nodes[1].close()
    assert "rank 0 does not take windows" in caplog.text
    assert "rank 0 did not take the last" in caplog.text
    assert job.senders[1].dropped > 900 - job.senders[1].frames


def test_waiting_ends_when_windows_pile_up(nodes, caplog):
    job = nodes(2, timeout=60.0)
    start = time.monotonic()
    window = job.nodes[0].reduce(window_of(at(0, 1.0)), True, lambda: True)
    assert time.monotonic() - start < 30.0
    assert points(window) == {("a", 0): 1.0}
    assert "no values from rank 1" in caplog.text


def test_a_rank_that_left_is_not_waited_for(nodes, caplog):
    job = nodes(4, timeout=60.0)
    job.reduce({rank: at(0, 2.0**rank) for rank in range(4)})
    job.finish([3])
    assert job.reduce({rank: at(1, 2.0**rank) for rank in range(3)}) == {("a", 1): 7.0}
    assert "rank 3 left the run before step 1" in caplog.text
    assert "no values" not in caplog.text
    assert job.finish([0, 1, 2]) == []


def test_a_parent_that_closed_first_has_read_everything(nodes, caplog):
    job = nodes(2)
    job.reduce({rank: at(0, 1.0) for rank in range(2)})
    job.finish([0, 1])
    job.nodes[0].close()
    job.nodes[1].close()
    assert caplog.text == ""


def test_a_parent_that_closed_too_early_is_noticed(nodes, caplog):
    job = nodes(2)
    job.reduce({rank: at(0, 1.0) for rank in range(2)})
    job.nodes[0].close()
    assert list(job.nodes[1].finish()) == []
    time.sleep(0.1)
    job.nodes[1].close()
    assert caplog.text.count("rank 0 is gone") == 1


def test_uneven_numbers_of_steps_at_the_end(nodes, caplog):
    job = nodes(4)
    last = {rank: 10 + rank for rank in range(4)}
    values = {rank: {step: {"a": [1.0]} for step in range(10, last[rank] + 1)} for rank in range(4)}
    assert job.reduce(values, ended=False) == {("a", 10): 4.0}
    rest = [point for window in job.finish([0, 1, 2, 3]) for point in window.items()]
    assert sorted(rest) == [(("a", 11), 3.0), (("a", 12), 2.0), (("a", 13), 1.0)]
    assert "lost" not in caplog.text


def test_a_rank_that_goes_on_after_the_writer_closed_is_heard(nodes):
    job = nodes(4)
    job.reduce({rank: at(0, 1.0) for rank in range(4)})
    for step in (1, 2):
        for rank in (3, 2):
            job.nodes[rank].reduce(window_of(at(step, 1.0), reduce="sum"), True, lambda: False)
    assert job.finish([0, 1, 2, 3]) == [{("a", 1): 2.0}, {("a", 2): 2.0}]


def test_closing_does_not_wait_longer_than_the_timeout(nodes, caplog):
    job = nodes(4, timeout=0.3)
    start = time.monotonic()
    assert job.finish([0]) == []
    assert time.monotonic() - start < 5.0
    assert "no values from ranks 1-3" in caplog.text


def test_windows_that_end_at_different_steps_are_merged_by_step_and_reported(nodes, caplog):
    job = nodes(2)
    ones = {step: {"a": [1.0]} for step in range(30)}

    def part(first: int, last: int) -> dict:
        return {step: ones[step] for step in range(first, last + 1)}

    def rank_1(first: int, last: int) -> None:
        job.nodes[1].reduce(window_of(part(first, last), reduce="sum"), True, lambda: False)

    # Rank 1 skipped steps 7 to 9: its windows of ten steps end three steps later.
    rank_1(0, 6)
    job.nodes[1].reduce(window_of(part(10, 12), reduce="sum"), True, lambda: False)
    assert job.reduce({0: part(0, 9)}) == {("a", step): 2.0 if step < 7 else 1.0 for step in range(10)}
    rank_1(13, 22)
    assert job.reduce({0: part(10, 19)}) == {("a", step): 2.0 for step in range(10, 20)}
    rank_1(23, 29)
    assert job.reduce({0: part(20, 29)}) == {("a", step): 2.0 for step in range(20, 30)}
    assert caplog.text.count("windows end at different steps") == 1
    assert "lost" not in caplog.text


def test_a_histogram_is_never_filed_behind_its_window(nodes):
    job = nodes(2)
    job.nodes[1].reduce(window_of({}, {5: {"h": [1.0]}, 12: {"h": [2.0]}}), True, lambda: False)
    window = job.nodes[0].reduce(window_of({}, {9: {"h": [3.0]}}), True, lambda: False)
    (record,) = records(window)
    assert (record.step, record.value.count) == (9, 3)


def test_series_known_to_some_ranks_are_reported_once(nodes, caplog):
    caplog.set_level(logging.INFO, "d9d_tracker")
    job = nodes(4)
    for step in range(2):
        values = {rank: {step: {"all": [1.0]} | ({f"stage {rank}": [1.0]} if rank > 1 else {})} for rank in range(4)}
        assert len(job.reduce(values)) == 3
    assert "known to some ranks only: series 'stage 2' (1 of 4); series 'stage 3' (1 of 4)" in caplog.text
    assert caplog.text.count("stage 2") == 1


def test_a_part_of_a_step_comes_first_and_the_rest_later(nodes):
    job = nodes(2)
    assert job.reduce({rank: at(5, 1.0) for rank in range(2)}, ended=False) == {("a", 5): 2.0}
    assert job.reduce({rank: {5: {"a": [1.0]}, 6: {"a": [1.0]}} for rank in range(2)}) == {("a", 5): 2.0, ("a", 6): 2.0}


def test_a_definition_that_differs_is_reported_once(nodes, caplog):
    job = nodes(2)
    for step in range(2):
        job.nodes[1].reduce(window_of(at(step, 5.0), reduce="max"), True, lambda: False)
        window = job.nodes[0].reduce(window_of(at(step, 1.0), reduce="min"), True, lambda: False)
        assert points(window) == {("a", step): 1.0}
    assert caplog.text.count("reduce='max'") == 1


def test_nothing_is_something_to_merge_with():
    part = Part.of_one_rank(window_of(at(1, 2.0)), True)
    assert points(Part.nothing(0, part.through).merged_with(part).window) == {("a", 1): 2.0}
