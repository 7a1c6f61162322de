"""S16, S17, S22, S23: what no line of the package does."""

import ast
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
TREES = {
    path.relative_to(ROOT): ast.parse(path.read_text()) for path in sorted((ROOT / "batcher").rglob("*.py"))
}

NO_IMPORTS = {
    *("pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "dbm", "diskcache"),
    *("subprocess", "pty", "commands", "ctypes", "code", "codeop", "runpy", "webbrowser", "xmlrpc"),
    *("telnetlib", "jinja2", "mako", "requests", "urllib.request", "tempfile.mktemp"),
}  # fmt: skip
NO_CALLS = {
    *("eval", "exec", "compile", "__import__", "input", "breakpoint"),
    *("os.system", "os.popen", "os.execv", "os.execvp", "os.spawnl", "os.startfile", "os.fork"),
    *("yaml.load", "yaml.load_all", "yaml.full_load", "yaml.unsafe_load", "yaml.unsafe_load_all"),
    *("pickle.load", "pickle.loads", "tempfile.mktemp", "ssl._create_unverified_context"),
    *("asyncio.create_subprocess_shell", "asyncio.create_subprocess_exec"),
}  # fmt: skip
NO_KEYWORDS = {("shell", True), ("verify", False), ("follow_redirects", True), ("trust_env", True),
               ("danger_accept_invalid_certs", True), ("show_locals", True)}  # fmt: skip


def dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def faults(tree: ast.AST) -> Iterator[str]:
    yield from (name for name in imports(tree) if {name, name.split(".")[0]} & NO_IMPORTS)
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = dotted(node.func)
            if name in NO_CALLS:
                yield f"{name}() in line {node.lineno}"
            for keyword in node.keywords:
                value = keyword.value.value if isinstance(keyword.value, ast.Constant) else None
                if (keyword.arg, value) in NO_KEYWORDS:
                    yield f"{keyword.arg}={value!r} in line {node.lineno}"


@pytest.mark.parametrize("path", TREES, ids=str)
def test_nothing_dangerous_is_called(path: Path) -> None:
    found = list(faults(TREES[path]))
    if "bench" in path.parts:  # it measures processes, of this interpreter and of its own modules only
        found = [fault for fault in found if not fault.startswith("subprocess")]
    assert not found


DANGEROUS = [
    "import pickle",
    "from pickle import loads",
    "import os\nos.system('x')",
    "import yaml\nyaml.load('x')",
    "run('x', shell=True)",
    "eval('1')",
    "get(url, verify=False)",
    "from urllib import request",
]


@pytest.mark.parametrize("source", DANGEROUS)
def test_what_is_dangerous_is_found(source: str) -> None:
    assert list(faults(ast.parse(source)))


def test_every_dependency_has_a_bound() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert not [name for name in project["dependencies"] if ">=" not in name]
    assert not [name for name in project["dependencies"] if "@" in name or "://" in name]
