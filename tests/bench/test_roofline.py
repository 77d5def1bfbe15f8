"""The picture of a roofline is drawn for sizes from KiB to GiB, ours and others; what it looks like is for the eye."""

from bench.roofline import Point, draw_roofline


def test_it_draws_a_png_and_says_where(tmp_path, capsys):
    points = [Point("ours", 2**size, 2.0**size / 1e6) for size in (12, 22, 31)] + [Point("theirs", 2**22, 9.0, False)]
    draw_roofline(points, 1e7, "one read", "A title", tmp_path / "new" / "picture.png")
    assert (tmp_path / "new" / "picture.png").read_bytes().startswith(b"\x89PNG")
    assert "picture.png" in capsys.readouterr().out
