import pytest

from bench.interleave import Spread, Subject
from bench.pairs import Pairs, interval, take_turns


def test_an_interval_holds_the_median_and_narrows_with_more_samples():
    few, many = interval([1.0, 1.2, 0.9, 1.1] * 2), interval([1.0, 1.2, 0.9, 1.1] * 50)
    assert few.median == many.median == pytest.approx(1.05)
    assert few.low < many.low <= 1.05 <= many.high < few.high
    assert interval([2.0, 2.0]) == Spread(2.0, 2.0, 2.0)


def test_neighbours_are_compared():
    # The machine is three times slower in the last turn, and the ratio does not feel it.
    pairs = Pairs(loop=[2.0, 2.0, 6.0], neighbour=[1.0, 1.0, 3.0], settled=[3.0] * 3, neighbour_settled=[1.0] * 3)
    assert pairs.ratio() == Spread(2.0, 2.0, 2.0)
    assert pairs.ratio(settled=True) == Spread(3.0, 3.0, 3.0)
    assert pairs.added().median == 1.0


def test_every_turn_is_beside_one_of_the_baseline(monkeypatch):
    clock, calls = [0.0], []
    monkeypatch.setattr("bench.pairs.time.perf_counter", lambda: clock[0])

    def subject(name, seconds, waits):
        def run(steps):
            calls.append(name)
            clock[0] += steps * seconds

        def settle():
            clock[0] += waits

        return Subject(run, steps=0, settle=settle, window=10)

    baseline = subject("-", 1.0, 0.0)
    found = take_turns(
        {"a": subject("a", 1.5, 15.0), "b": subject("b", 1.0, 0.0)}, baseline, turns=6, windows=2, device="cpu"
    )
    assert found["a"].ratio() == Spread(1.5, 1.5, 1.5)
    assert found["a"].ratio(settled=True).median == pytest.approx((1.5 * 30 + 15) / 30)
    assert found["b"].ratio() == found["b"].ratio(settled=True) == Spread(1.0, 1.0, 1.0)
    timed = calls[12:][::2]  # two calls a turn
    neighbours = [set(timed[index : index + 2]) for index in range(0, len(timed), 2)]
    assert neighbours.count({"a", "-"}) == neighbours.count({"b", "-"}) == 6


def test_the_baseline_can_be_its_own_neighbour():
    done = []
    baseline = Subject(done.append, steps=0, window=3)
    found = take_turns({"again": Subject(done.append, steps=0, window=3)}, baseline, turns=3, windows=1, device="cpu")
    assert len(found["again"].loop) == 3
