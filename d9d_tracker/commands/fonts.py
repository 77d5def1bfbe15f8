"""Names as they are: text of any script as far as the installed fonts go, and never a formula."""

import functools

from matplotlib import font_manager
from matplotlib.ft2font import FT2Font

# Of these, those that are installed stand in for what matplotlib's own font lacks.
_WIDE = (
    "Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans CJK KR", "Noto Sans SC", "Source Han Sans SC", "PingFang SC",
    "Hiragino Sans", "Hiragino Sans GB", "Apple SD Gothic Neo", "Microsoft YaHei", "Yu Gothic", "Malgun Gothic",
    "SimHei", "WenQuanYi Zen Hei", "WenQuanYi Micro Hei", "Arial Unicode MS", "Unifont",
)  # fmt: skip


@functools.cache
def families() -> list[str]:
    """Return the families of fonts to draw with, the first that has a character."""
    known = set(font_manager.get_font_names())
    return ["DejaVu Sans", *(name for name in _WIDE if name in known)]


def drawable(text: str) -> str:
    """Return a text with Python's escape for each character that no installed font has, or that is not printable."""
    return "".join(one if _is_drawable(one) else one.encode("unicode_escape").decode() for one in text)


@functools.lru_cache(maxsize=10_000)
def _is_drawable(character: str) -> bool:
    if character.isascii():
        return character.isprintable()
    return character.isprintable() and any(font.get_char_index(ord(character)) for font in _fonts())


@functools.cache
def _fonts() -> list[FT2Font]:
    return [font_manager.get_font(font_manager.findfont(family)) for family in families()]
