"""Which rank is slow, what all of them get done by the time of the slowest, and both across numbers of ranks."""

from jobs import run_job
from programs import panel_over_lives

from tests.run_files import read_run


def test_the_slow_rank_and_the_rate_of_all_are_told_for_any_number_of_ranks(tmp_path):
    sizes = (1, 3, 2)
    for life, size in enumerate(sizes):
        assert run_job(panel_over_lives, size, tmp_path, life)[0].result == size
    (file,) = tmp_path.glob("**/*.jsonl")
    found = {(record.name, record.step): record.value for record in read_run(file)[1]}
    total = 0.0
    for step in range(18):
        size = sizes[step // 6]
        tokens = sum(10.0 * (rank + 1) for rank in range(size))
        total += tokens
        assert found["tokens", step] == total
        if step % 6 < 5:  # the last one of a life is not whole
            assert found["tokens/s", step] == tokens / 4
            assert found["mfu", step] == tokens / 4 * 2.0 / (10.0 * size)
        for name in ("time/step", "time/work") if step % 6 < 5 else ("time/work",):
            if step < 4:
                assert found[name, step] == 4.0
                continue
            # What the first life had in its last window is sent by the second one, whose ranks are several.
            parts = [found[f"{name}/{part}", step] for part in ("min", "mean", "max", "max_rank")]
            if size == 1:
                assert parts == [4.0, 4.0, 4.0, 0.0]
                continue
            assert parts == [1.0, (4.0 + size - 1) / size, 4.0, step % size]
