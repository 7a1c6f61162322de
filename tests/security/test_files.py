"""S8, S9, S15: what is written belongs to its owner alone, and goes where it was told and nowhere else."""

import json
import os
import stat
from pathlib import Path

import pytest
from command_line import call
from evil_provider import evil_provider
from processes import batcher

JOB = '{"id":"a","model":"m","prompt":"x"}\n'
SIDE_FILES = ("x.jsonl", "x.errors.jsonl", "x.journal", "x.summary.json", "x.summary.json.tmp", "x.lock")


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A directory with one job."""
    (tmp_path / "jobs.jsonl").write_text(JOB)
    return tmp_path


def modes(directory: Path) -> dict[str, str]:
    """Return the permissions of all that lies in a directory and below."""
    return {
        str(path.relative_to(directory)): oct(stat.S_IMODE(path.lstat().st_mode))
        for path in directory.rglob("*")
        if not path.is_dir()
    }


def test_a_careless_umask_opens_nothing(here: Path) -> None:
    (here / "limits.yaml").write_text("rpd: 1000\n")
    for name in ("jobs.jsonl", "limits.yaml"):
        (here / name).chmod(0o600)
    with evil_provider({}) as provider:
        run = ("run", "jobs.jsonl", "-c", "limits.yaml", "--base-url", provider.url)
        for more in (["-o", "a/b/x.jsonl"], ["-o", "a/b/x.jsonl", "--fresh"], ["-o", "c.jsonl"], []):
            done = batcher(*run, *more, cwd=here, before=lambda: os.umask(0))
            assert done.code == 0, done.stderr
    assert set(modes(here).values()) == {"0o600"}
    directories = [path for path in here.rglob("*") if path.is_dir()]
    assert {path.name for path in directories} >= {"a", "b", "results", "state"}
    assert {oct(stat.S_IMODE(path.stat().st_mode)) for path in directories} == {"0o700"}


@pytest.mark.parametrize("name", SIDE_FILES)
@pytest.mark.parametrize("target", ["victim", "nowhere"])
def test_a_planted_link_is_never_written_through(here: Path, name: str, target: str) -> None:
    (here / "victim").write_text("precious")
    (here / name).symlink_to(target)
    done = batcher("run", "jobs.jsonl", "-o", "x.jsonl", "--simulate", cwd=here)
    # A new summary takes the place of the link itself, by a rename.
    assert done.code == (74 if name != "x.summary.json" else 0), done.stderr
    assert (here / "victim").read_text() == "precious"
    assert not (here / "nowhere").exists()


@pytest.mark.parametrize("name", ["x.quarantine", "x.superseded.jsonl", "x.jsonl.tmp"])
def test_a_planted_link_where_a_repair_writes_is_not_followed(here: Path, name: str) -> None:
    out = here / "x.jsonl"
    assert batcher("run", "jobs.jsonl", "-o", "x.jsonl", "--simulate", cwd=here).code == 0
    line = out.read_bytes()
    out.write_bytes(line + b"torn\n" + line)
    (here / "victim").write_text("precious")
    (here / name).symlink_to("victim")
    done = batcher("run", "jobs.jsonl", "-o", "x.jsonl", "--simulate", cwd=here)
    assert done.code == 74, done.stderr
    assert (here / "victim").read_text() == "precious"
    assert out.read_bytes().startswith(line)


def test_a_port_file_is_not_written_through_a_link(here: Path) -> None:
    (here / "victim").write_text("precious")
    (here / "port.tmp").symlink_to("victim")
    done = batcher("simulator", "--port", 0, "--port-file", "port", cwd=here)
    assert done.code == 74
    assert "symbolic link" in done.stderr
    assert (here / "victim").read_text() == "precious"


def test_files_and_directories_that_are_open_to_others_are_told(here: Path) -> None:
    (here / "x.jsonl").touch(mode=0o644)
    (here / "x.jsonl").chmod(0o644)
    first = call("run", "jobs.jsonl", "-o", "x.jsonl", "--simulate", cwd=here)
    assert f"{here}: warning" not in first.stderr
    assert ".: warning: others may open x.jsonl: chmod 600" in first.stderr
    (here / "x.jsonl").chmod(0o600)
    assert "warning" not in call("run", "jobs.jsonl", "-o", "x.jsonl", "--simulate", cwd=here).stderr
    shared = here / "shared"
    shared.mkdir()
    for mode, told in ((0o777, True), (0o1777, False), (0o755, False)):
        shared.chmod(mode)
        ended = call("run", "jobs.jsonl", "-o", "shared/x.jsonl", "--simulate", cwd=here)
        assert ended.code == 0
        assert ("shared: warning: anyone can replace the files in it" in ended.stderr) is told


NAMES = [
    *(
        "../../etc/x",
        "/etc/passwd",
        "..",
        ".",
        "a/../b",
        "%2e%2e%2f",
        "~",
        "CON",
        "nul",
        "x.jsonl",
        "a\\b",
        "*",
    ),
    *("$(id)", "`id`", "|id", "-o", "--", "{run_id}", "a" * 256, "ä" * 256),
]
NO_NAMES = ["a\0b", "a" * 300, "a\nb", "", "\x1b[2J"]


def test_ids_are_never_paths(tmp_path: Path) -> None:
    inner = tmp_path / "one" / "two"
    inner.mkdir(parents=True)
    lines = [{"id": name, "model": "m", "prompt": "x"} for name in NAMES + NO_NAMES]
    (inner / "jobs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    done = batcher("run", "jobs.jsonl", "-o", "x.jsonl", "--simulate", "--log-level", "debug", cwd=inner)
    assert done.code == 3, done.stderr
    results = [json.loads(line)["custom_id"] for line in (inner / "x.jsonl").read_text().splitlines()]
    assert sorted(results) == sorted(NAMES)
    assert [path.name for path in tmp_path.iterdir()] == ["one"]
    assert [path.name for path in (tmp_path / "one").iterdir()] == ["two"]
    expected = {"jobs.jsonl", "x.jsonl", "x.errors.jsonl", "x.journal", "x.summary.json", "x.lock"}
    assert {path.name for path in inner.iterdir()} - {"state"} == expected


BAD_NAMES = [b"x\xff.jsonl", b"\xc3\x28.jsonl", b"x\xff/y.jsonl"]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_a_name_that_is_no_text_is_refused_before_a_cent_is_spent(here: Path, name: bytes) -> None:
    path = here / os.fsdecode(name)
    path.parent.mkdir(exist_ok=True)
    path.write_text(JOB)
    text = os.fsdecode(name)
    for args in ([text, "--simulate"], [text, "-o", "x.jsonl", "--simulate"], ["jobs.jsonl", "-o", text]):
        ended = call("run", *args, cwd=here)
        assert ended.code == 2, ended.stderr
        assert "the name is not UTF-8" in ended.stderr
    assert not list(here.glob("*.summary.json"))
    assert call("check", text, cwd=here).code == 0


@pytest.mark.parametrize("given", ["{0}.jsonl", "{x}.jsonl", "{stem.x}.jsonl", "{.jsonl"])
def test_a_template_gives_names_only(here: Path, given: str) -> None:
    ended = call("run", "jobs.jsonl", "--simulate", "-o", given, cwd=here)
    assert ended.code == 2, ended.stderr
    assert {path.name for path in here.iterdir()} == {"jobs.jsonl"}
