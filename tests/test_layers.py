"""Who may know whom: rooms import downwards only, so that there is no circle to get lost in."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "d9d_tracker"
# What a room may import of the package, itself included. Rooms that are not named here may import everything.
ALLOWED = {
    "at_exit": {"log"},
    "config": set(),
    "lazy_torch": set(),
    "log": set(),
    "tracing": {"lazy_torch"},
    "errors": {"lazy_torch"},
    "record": {"config"},
    "points": {"record"},
    "steps": {"errors", "lazy_torch"},
    "base": {"at_exit", "config", "errors", "record"},
    "context": {"errors"},
    "hparams": {"lazy_torch"},
    "sink": {"base", "points", "record"},
    "bare_run": {"base", "context", "lazy_torch", "points", "record", "sink", "steps"},
    "backend": {"bare_run", "base", "config", "sink"},
    "delivery": {"bare_run", "log", "points", "record", "sink", "delivery"},
    "writer": {"backend", "bare_run", "base", "hparams", "log", "points", "provider", "sink", "writer"},
    "provider": {
        "backend",
        "bare_run",
        "base",
        "config",
        "hparams",
        "lazy_torch",
        "log",
        "points",
        "record",
        "provider",
    },
    "panel": {"compiled", "context", "devices", "errors", "lazy_torch", "log", "series", "tracing", "windows", "panel"},
    "series": {"config", "context", "errors", "log", "series"},
    "windows": {"log", "points", "record", "series", "windows"},
    "devices": {"devices", "errors", "log"},
    "bank": {"config", "devices", "errors", "lazy_torch", "log", "record", "series", "tracing", "windows", "bank"},
    "compiled": {"bank", "config", "errors", "lazy_torch", "log", "series", "tracing", "compiled"},
    "ranks": {"config", "errors", "log", "series", "windows", "ranks"},
    "pipeline": {"bank", "delivery", "errors", "log", "points", "ranks", "record", "series", "windows", "pipeline"},
    "calls": {
        "bank",
        "base",
        "compiled",
        "config",
        "context",
        "devices",
        "errors",
        "lazy_torch",
        "log",
        "panel",
        "record",
        "series",
        "tracing",
        "windows",
        "calls",
    },
    "watch": {
        "bank",
        "base",
        "calls",
        "compiled",
        "config",
        "errors",
        "lazy_torch",
        "log",
        "series",
        "tracing",
        "watch",
    },
    "accumulator": {
        "at_exit",
        "backend",
        "bank",
        "base",
        "calls",
        "config",
        "context",
        "delivery",
        "errors",
        "hparams",
        "log",
        "pipeline",
        "ranks",
        "record",
        "sink",
        "steps",
        "tracing",
        "watch",
        "windows",
        "writer",
        "accumulator",
    },
}


def imports(path: Path) -> set[str]:
    """Return the modules of this package that a file imports, type imports included."""
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (base, node.module or "") if part)
            found |= {module} | {f"{module}.{name.name}" for name in node.names}
        elif isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
    return {module for module in found if module.startswith("d9d_tracker.")}


def room(module: str) -> str:
    return module.split(".")[1]


FILES = sorted(path for path in PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_room_knows_only_what_is_below_it(path: Path) -> None:
    own = path.relative_to(PACKAGE).with_suffix("").parts[0]
    known = {room(module) for module in imports(path)}
    assert known <= ALLOWED.get(own, known | {own})


def test_the_kernels_know_nothing_of_the_package() -> None:
    files = list((ROOT / "kernels").rglob("*.py"))
    assert files
    assert [path for path in files if imports(path)] == []


def is_without_circle(graph: dict[str, set[str]]) -> bool:
    while graph:
        leaves = {name for name, imported in graph.items() if not imported & graph.keys()}
        assert leaves, f"these import each other: {sorted(graph)}"
        graph = {name: imported for name, imported in graph.items() if name not in leaves}
    return True


def test_there_is_no_circle_of_rooms() -> None:
    assert is_without_circle({own: known - {own} for own, known in ALLOWED.items()})


def test_there_is_no_circle_of_files() -> None:
    names = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in FILES}
    assert is_without_circle({name: imports(path) & names.keys() for name, path in names.items()})
