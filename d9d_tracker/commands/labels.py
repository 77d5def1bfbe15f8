"""What runs and series are called where there is little room, and which names are near."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from difflib import SequenceMatcher
from fnmatch import fnmatchcase
from typing import Any

from d9d_tracker.hparams import flat_hparams
from d9d_tracker.reading import StoredRun

_LONGEST, _LONGEST_LABEL = 200, 40  # characters
_NEAR = 8
_NUMBERED = re.compile(r"(\D*)(\d*)", re.ASCII)
_WORD = re.compile(r"[^\W_]+")


def differing(runs: Sequence[StoredRun]) -> list[dict[str, Any]]:
    """Return for each run those of its hyperparameters in which the runs differ, by dotted names."""
    all_flat = [flat_hparams(run.hparams) for run in runs]
    names = dict.fromkeys(name for hparams in all_flat for name in hparams)
    kept = [name for name in names if any(hparams.get(name) != all_flat[0].get(name) for hparams in all_flat)]
    return [{name: hparams[name] for name in kept if name in hparams} for hparams in all_flat]


def in_words(values: dict[str, Any], most: int = _LONGEST) -> str:
    """Return names and values on one line, as many as fit."""
    words: list[str] = []
    for name, value in values.items():
        words.append(shortened(f"{name}={value}", most))
        if len(words) > 1 and sum(map(len, words)) + 2 * len(words) > most:
            return f"{', '.join(words[:-1])}, +{len(values) - len(words) + 1} more"
    return ", ".join(words)


def in_order(name: str) -> list[tuple[str, int]]:
    """Return what names are sorted by, layer 2 before layer 10."""
    return [(words, int(digits or 0)) for words, digits in _NUMBERED.findall(name)]


def labels_of(runs: Sequence[StoredRun]) -> list[str]:
    """Return what tells runs apart: their names, hyperparameters in which they differ, at last their files."""
    if len(runs) == 1:
        return [""]
    names = [run.name if len({run.name for run in runs}) > 1 else "" for run in runs]
    labels = [
        together(name, in_words(hparams, _LONGEST_LABEL)) for name, hparams in zip(names, differing(runs), strict=True)
    ]
    counts = Counter(labels)
    return [
        label if label and counts[label] == 1 else together(label, run.path.stem)
        for label, run in zip(labels, runs, strict=True)
    ]


def together(*labels: str) -> str:
    """Return labels as one; empty ones are left out."""
    return "  ".join(filter(None, labels))


def shortened(text: str, most: int) -> str:
    """Return a text with its middle left out if it is too long."""
    if len(text) <= most:
        return text
    end = (most - 1) // 2
    return f"{text[: most - 1 - end]}…{text[-end:]}"


def shortened_apart(texts: Iterable[str], most: int) -> dict[str, str]:
    """Return texts shortened, with a number where two would read the same."""
    short = {text: shortened(text, most) for text in texts}
    counts, used = Counter(short.values()), Counter[str]()
    for text, words in short.items():
        if counts[words] > 1:
            used[words] += 1
            short[text] = f"{words} ({used[words]})"
    return short


def unmatched(patterns: Sequence[str], names: Iterable[str]) -> list[str]:
    """Say which patterns match no series, with the names that are near."""
    known = list(dict.fromkeys(names))
    return [
        f"no series {pattern}; {_near(pattern, known)}"
        for pattern in patterns
        if not any(fnmatchcase(name, pattern) for name in known)
    ]


def _near(pattern: str, names: list[str]) -> str:
    if len(names) <= _NEAR:
        return f"there are: {', '.join(shortened(name, _LONGEST) for name in names)}" if names else "there is none"
    words = set(_WORD.findall(pattern.lower()))

    def nearness(name: str) -> tuple[int, float]:
        return len(words.intersection(_WORD.findall(name.lower()))), SequenceMatcher(None, pattern, name).ratio()

    nearest = sorted(names, key=nearness, reverse=True)[:_NEAR]
    return f"of {len(names)} the nearest are: {', '.join(shortened(name, _LONGEST) for name in nearest)}"
