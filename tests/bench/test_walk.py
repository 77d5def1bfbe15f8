"""The walk through the source is counted as a reader would walk it."""

import pytest

from bench.walk import Walk


@pytest.mark.parametrize(
    ("visited", "row"),
    [([], ("0", "0", "0")), (["a"], ("1", "0", "0")), (["a", "a", "b", "b", "a", "c"], ("3", "3", "1"))],
)
def test_a_move_is_into_another_file_and_a_return_into_one_that_was_visited(visited: list[str], row: tuple[str, ...]):
    walk = Walk()
    walk.visited = visited
    assert walk.row("name") == ("name", *row)


def test_the_calls_of_a_scalar_are_found(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    from bench.walk import main

    monkeypatch.setattr("sys.argv", ["walk", "--files"])
    main()
    said = " ".join(capsys.readouterr().out.split())
    assert "scalar: scalar_calls.py" in said
    assert "from the call to the backend: scalar_calls.py" in said
