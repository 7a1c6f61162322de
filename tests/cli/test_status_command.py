"""`batcher status` tells where an output stands and what happened last."""

from datetime import UTC, datetime
from pathlib import Path

import orjson
import pytest
from command_line import call

from batcher.journal import Journal

EVIL = "\x1b]0;title\x07"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """The output of a run in which something happened."""
    (tmp_path / "jobs.jsonl").write_text('{"id":"1","model":"m","prompt":"x"}\n')
    assert call("run", "jobs.jsonl", "-o", "x.jsonl", "--simulate", cwd=tmp_path).code == 0
    journal = Journal(tmp_path / "x.journal")
    journal.notice(f"m: pauses {EVIL}", datetime.now(UTC))
    journal.close()
    return tmp_path / "x.jsonl"


def test_the_last_notices_stand_below_the_figures(out: Path) -> None:
    ended = call("status", "x.jsonl", cwd=out.parent)
    assert (ended.code, ended.stderr) == (0, "")
    figures, last, news, notice = ended.stdout.splitlines()
    assert figures == "x.jsonl: 1 answered, 0 failed, 0 pending"
    assert last.startswith("last run: ")
    assert news == "last notices:"
    assert "m: pauses" in notice
    assert "\x1b" not in notice


def test_a_script_gets_all_of_them(out: Path) -> None:
    ended = call("status", "x.jsonl", "--json", cwd=out.parent)
    content = orjson.loads(ended.stdout)
    assert [notice["message"] for notice in content["notices"]] == [f"m: pauses {EVIL}"]
    assert datetime.fromisoformat(content["notices"][0]["at"]).tzinfo is not None
    assert (content["answered"], content["pending"], content["running"]) == (1, 0, False)


def test_an_output_must_be_one(tmp_path: Path) -> None:
    assert call("status", "x.json", cwd=tmp_path).code == 2
    assert call("status", "x.jsonl", cwd=tmp_path).code == 66
