"""Rank 0 tells which rank was not finite first."""

from jobs import run_job
from programs import breaking

from d9d_tracker import NonFinite


def test_rank_0_knows_which_rank(tmp_path):
    outcomes = run_job(breaking, 3, tmp_path)
    expected = [
        NonFinite("one after the other", {}, 3, 3, "nan", ranks=(0,)),
        NonFinite("loss", {}, 7, 7, "nan", ranks=(1,)),
        NonFinite("both", {}, 11, 11, "inf", ranks=(1, 2)),
        NonFinite("gradients", {"rank": "2"}, 10, 14, "", nan=2, elements=50, ranks=(2,)),
    ]
    assert sorted(outcomes[0].result["report"], key=str) == sorted(expected, key=str)
    assert outcomes[0].result["told"] == outcomes[0].result["report"]
    assert outcomes[0].said("loss: nan at step 7 on rank 1")
    assert outcomes[0].said("both: inf at step 11 on ranks 1-2")
    assert [outcome.result["levels"] for outcome in outcomes] == [{"WARNING"}, {"INFO"}, {"INFO"}]
    # The others know what they have met themselves.
    assert [one.name for one in outcomes[1].result["report"]] == ["loss", "one after the other", "both"]
