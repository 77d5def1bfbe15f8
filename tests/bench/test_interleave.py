import pytest

from bench.interleave import Spread, Subject, Timing, interleave


def test_a_spread_is_the_median_and_the_quartiles():
    assert Spread.of([5.0, 1.0, 3.0, 2.0, 4.0]) == Spread(3.0, 2.0, 4.0)


def test_a_ratio_compares_samples_of_the_same_round():
    # The machine is three times slower in the last round, and the ratio does not feel it.
    slow, fast = Timing(loop=[2.0, 2.0, 6.0]), Timing(loop=[1.0, 1.0, 3.0])
    assert slow.ratio(fast) == Spread(2.0, 2.0, 2.0)


def test_every_subject_is_timed_in_every_round():
    calls: list[str] = []
    subjects = {
        name: Subject(
            lambda steps, name=name: calls.append(f"run {name} {steps}"),
            steps=8,
            before=lambda name=name: calls.append(f"before {name}"),
            settle=lambda name=name: calls.append(f"settle {name}"),
        )
        for name in "ab"
    }
    timings = interleave(subjects, rounds=5, round_seconds=1.0, device="cpu")
    for name in "ab":
        assert len(timings[name].loop) == 5
        assert calls.count(f"run {name} 8") == 5
        assert calls.count(f"before {name}") == calls.count(f"settle {name}") == 7  # two rounds are untimed
    orders = [tuple(call[-3] for call in calls if call.startswith("run") and call.endswith(" 8"))]
    assert all(set(order[i : i + 2]) == {"a", "b"} for order in orders for i in range(0, 10, 2))


@pytest.mark.parametrize(("seconds", "expected"), [(0.01, 8), (0.02, 4), (0.1, 1)])
def test_a_slow_subject_does_fewer_steps_but_whole_windows(monkeypatch, seconds, expected):
    clock = [0.0]
    monkeypatch.setattr("bench.interleave.time.perf_counter", lambda: clock[0])
    done: list[int] = []

    def run(steps):
        done.append(steps)
        clock[0] += steps * seconds

    interleave({"a": Subject(run, steps=8, window=4)}, rounds=1, round_seconds=0.13, device="cpu")
    assert done[-1] == expected
