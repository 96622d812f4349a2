"""The rooms and the arrows between them."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("core", "models", "datasets", "labelprop", "training")
PROGRAMS = ("train", "infer_vos", "evaluate")
ALLOWED = {room: {room, "core"} for room in ROOMS}
ALLOWED["training"] |= {"datasets", "labelprop"}
FILES = [path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))]


def imported(path, top_level_only=False):
    """First parts of the names of all modules that a file imports."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in tree.body if top_level_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module.split(".")[0]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_arrows_between_rooms(path):
    room = path.relative_to(ROOT).parts[0]
    inner = {name for name in imported(path) if name in (*ROOMS, *PROGRAMS, "tests")}
    assert inner <= ALLOWED[room], f"{path.name} in {room} imports {inner - ALLOWED[room]}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_triton_stays_in_its_file(path):
    if path.name != "triton_kernel.py":
        assert "triton" not in imported(path, top_level_only=True)


def test_nothing_but_tests_imports_programs():
    for path in [*FILES, *ROOT.glob("*.py"), *(ROOT / "benchmarks").glob("*.py")]:
        names = set(imported(path)) - {path.stem}
        assert not names & {*PROGRAMS, "tests"}, f"{path} imports {names}"


def test_the_walk_finds_imports(tmp_path):
    sample = tmp_path / "a.py"
    sample.write_text("import train\ndef f():\n    from models import x\n")
    assert set(imported(sample)) == {"train", "models"}
    assert set(imported(sample, top_level_only=True)) == {"train"}
