"""The imports that are allowed between rooms (folders of code)."""

import ast
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("core", "models", "datasets", "labelprop", "training")
PROGRAMS = ("train", "infer_vos", "evaluate")
ALLOWED = {room: {room, "core"} for room in ROOMS}
ALLOWED["training"] |= {"datasets", "labelprop"}
#: Programs inside a room, started by python -m ROOM.NAME; like train.py, they may import every room.
COMMANDS = {"datasets/check.py": "datasets.check"}
#: modules that open network connections, and packages that download
NETWORK = {
    "asyncio",
    "ftplib",
    "http",
    "httpx",
    "huggingface_hub",
    "requests",
    "smtplib",
    "socket",
    "socketserver",
    "ssl",
}
NETWORK |= {"timm", "urllib", "xmlrpc"}
FILES = [path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))]


@cache
def modules(path, top_level_only=False):
    """Names of all modules that a file imports; for `from a import b`, both a and a.b."""
    tree, names = ast.parse(path.read_text(encoding="utf-8")), set()
    for node in tree.body if top_level_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def imported(path, top_level_only=False):
    """Names of the top-level modules that a file imports."""
    return {name.split(".")[0] for name in modules(path, top_level_only)}


def test_arrows_between_rooms():
    wrong = {}
    for path in FILES:
        name = path.relative_to(ROOT)
        allowed = {*ROOMS} if str(name) in COMMANDS else ALLOWED[name.parts[0]]
        wrong[str(name)] = imported(path) & {*ROOMS, *PROGRAMS, "tests"} - allowed
    assert not {name: rooms for name, rooms in wrong.items() if rooms}


def test_triton_stays_in_its_file():
    importing = {path.name for path in FILES if "triton" in imported(path, top_level_only=True)}
    assert importing == {"triton_kernel.py"}


def test_nothing_but_tests_imports_programs():
    for path in [*FILES, *ROOT.glob("*.py"), *(ROOT / "benchmarks").glob("*.py")]:
        names = imported(path) - {path.stem}
        assert not names & {*PROGRAMS, "tests"}, f"{path} imports {names}"
        assert not set(modules(path)) & set(COMMANDS.values()), path


def test_only_the_download_of_timm_and_the_app_open_the_network():
    folders = (*ROOMS, "benchmarks", "launch")
    paths = {*FILES, *ROOT.glob("*.py"), *(path for folder in folders for path in (ROOT / folder).rglob("*.py"))}
    for path in paths - {ROOT / "models/backbones/timm.py"}:
        allowed = {"httpx", "socket"} if path == ROOT / "launch/app.py" else set()  # names of its errors, and of hosts
        found = {*imported(path)} & NETWORK - allowed
        assert not found, f"{path} imports {found}"
        assert "_url(" not in path.read_text(encoding="utf-8"), f"{path} calls one of torch's downloads"


def test_the_walk_finds_imports(tmp_path):
    sample = tmp_path / "a.py"
    sample.write_text("import train\ndef f():\n    from models import x\n")
    assert imported(sample) == {"train", "models"} and "models.x" in modules(sample)
    assert imported(sample, top_level_only=True) == {"train"}
