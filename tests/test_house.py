"""The plan of the house holds: imports run one way, heavy ones wait, and no room is crowded."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "batcher"
MODULES = sorted(PACKAGE.rglob("*.py"))

# Lowest first. Rooms in one set do not know each other.
FLOORS: list[set[str]] = [
    {"types", "clock"},
    {"errors"},
    {"events"},
    {"text"},
    {"limits", "pricing"},
    {"results"},
    {"journal"},
    {"providers", "jobs", "resume", "history", "lock", "ledger", "observe"},
    {"scheduling", "sharing"},
    {"execution"},
    {"engines"},
    {"config_source"},
    {"config"},
    {"accounts"},
    {"wiring", "spec"},
    {"intake"},
    {"batch"},
    {"api"},
    {"bench"},
    {"cli"},
]
FLOOR = {room: height for height, rooms in enumerate(FLOORS) for room in rooms}

HEAVY = {"groq", "pyreqwest", "httpx", "rich", "uvloop", "jsonschema", "genai_prices", "zstandard", "aiohttp"}
HEAVY |= {"ray", "redis", "prometheus_client", "matplotlib"}
# Modules that are themselves only imported when their package is needed.
LATE = {
    f"providers/{name}.py" for name in ("groq_client", "plain_http", "pyreqwest_client", "pyreqwest_faults")
}


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield node.module or ""


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_only_go_down(path: Path) -> None:
    room = room_of(path)
    if room == "__init__":
        return  # the front door only hands out names
    wrong = []
    for name in imported(ast.parse(path.read_text())):
        parts = name.split(".")
        if parts[0] != "batcher" or len(parts) < 2 or parts[1] == room:
            continue
        if FLOOR[parts[1]] >= FLOOR[room]:
            wrong.append(name)
    assert not wrong, f"{room} must not import {wrong}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_heavy_packages_are_not_imported_at_module_level(path: Path) -> None:
    if str(path.relative_to(PACKAGE)) in LATE:
        return
    tree = ast.parse(path.read_text())
    top = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {name.split(".")[0] for node in top for name in imported(node)}
    assert not names & HEAVY


@pytest.mark.parametrize("args", [["--help"], ["check", "--help"], ["run", "--help"]], ids=" ".join)
def test_help_is_shown_without_heavy_packages(args: list[str]) -> None:
    script = (
        "import sys\n"
        "from batcher.cli.main import main\n"
        "try:\n    main(sys.argv[1:])\n"
        "except SystemExit as end:\n    assert end.code == 0\n"
        f"heavy = sorted({HEAVY!r} & set(sys.modules))\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", script, *args], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Examples:")


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_stay_small_enough_to_read(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 350


def test_public_names_are_these() -> None:
    import batcher  # noqa: PLC0415 - what is tested is the import

    assert batcher.__all__ == [
        "BatcherError",
        "Failure",
        "Job",
        "JobRun",
        "Reply",
        "Result",
        "Usage",
        "arun_jobs",
        "run_jobs",
    ]
    for name in batcher.__all__:
        assert getattr(batcher, name).__name__ == name


def test_nothing_is_pickled_and_no_shell_is_started() -> None:
    for path in MODULES:
        names = set(imported(ast.parse(path.read_text())))
        assert "pickle" not in names, path
        assert "shell=True" not in path.read_text(), path
