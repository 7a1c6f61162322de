"""S13, S14: whatever foreign text a command shows, it steers no terminal and forges no line."""

import json
import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import pytest
from evil_provider import Provider, error, evil_provider, reply
from processes import Done, at_a_terminal, batcher

PAYLOADS = {
    "OSC 52 clipboard": "\x1b]52;c;ZXZpbA==\x07",
    "OSC 8 link": "\x1b]8;;http://127.0.0.1/\x1b\\here\x1b]8;;\x1b\\",
    "OSC 0 title": "\x1b]0;title\x07",
    "CSI 2J": "\x1b[2J\x1b[H",
    "DCS": "\x1bP$q\x1b\\",
    "unterminated OSC": "\x1b]0;never ends",
    "8-bit CSI": "\x9b2J",
    "8-bit OSC": "\x9d0;title\x9c",
    "backspaces": "ok\x08\x08no",
    "carriage return": "bad\rgood",
    "DEL and BEL": "\x7f\x07",
    "shift out": "\x0e\x0f",
    "bidi override": "\u202egpj.exe\u202c",
    "bidi isolate": "\u2066abc\u2069",
    "zero width": "a\u200bb\ufeffc",
    "line separators": "a\u2028b\u2029c\x85d",
    "tag characters": "\U000e0041\U000e0042",
    "forged line": "x\nbatcher: forged",
}
EVIL = "".join(PAYLOADS.values())
# What rich draws its bar with: cursor off and on, up, erase line, colours.
_BAR = re.compile(r"\x1b\[(?:\?25[lh]|\d*A|2K|[\d;]*m)|\r")


def steering(text: str) -> set[str]:
    """Return the characters of a terminal's text that only foreign text can have brought there."""
    plain = _BAR.sub("", text.replace("\r\n", "\n"))
    return {char for char in plain if char not in "\n\t" and unicodedata.category(char) in {"Cc", "Cf", "Cs"}}


def assert_harmless(*ends: Done) -> None:
    for done in ends:
        assert not steering(done.stdout + done.stderr)
        assert not re.search("^batcher: forged", done.stdout + done.stderr, re.MULTILINE)


def models(_: str) -> bytes:
    listed = [{"id": payload, "owned_by": payload, "context_window": 9} for payload in PAYLOADS.values()]
    return reply(json.dumps({"object": "list", "data": listed}).encode())


ANSWERS = {
    "models": models,
    "message": lambda _: error(EVIL, code=EVIL, type=EVIL),
    "text": lambda _: reply(EVIL.encode(), "422 No", kind="text/plain"),
    "title": lambda _: reply(f"<html><title>{EVIL}".encode(), "404 No", kind="text/html"),
    "limit": lambda _: error(f"{EVIL} on tokens per minute (TPM): Limit 9, Requested 10", "413 Large"),
    "gone": lambda _: error(f"the model {EVIL} does not exist", "404 No", code="model_not_found"),
}  # fmt: skip


@pytest.fixture(scope="module")
def provider() -> Iterator[Provider]:
    with evil_provider(ANSWERS) as serving:
        yield serving


def lines_with(payload: str) -> list[str]:
    """Bad lines that each repeat a payload in what is said about them."""
    lines: list[dict[str, object]] = [
        {"id": payload, "prompt": "x"},
        {"prompt": "x", payload: 1},
        {"prompt": "x", "kind": payload},
        {"prompt": "x", "model": payload},
        {"method": "POST", "url": payload, "body": {}},
        {"prompt": "x", "schema": {"type": payload}},
        {"prompt": "x", "schema": {"$ref": payload}},
    ]
    return [*(json.dumps(line, ensure_ascii=False) for line in lines), payload.replace("\n", " ")]


def test_bad_lines_and_file_names(tmp_path: Path) -> None:
    name = f"{EVIL.replace('/', '')[:200]}.jsonl"
    text = "\n".join(line for payload in PAYLOADS.values() for line in lines_with(payload))
    (tmp_path / name).write_text(text)
    checked = at_a_terminal("check", name, cwd=tmp_path)
    assert checked.code == 65
    assert f"{8 * len(PAYLOADS)} bad lines" in checked.stdout
    unnamed = at_a_terminal("check", EVIL.replace("\n", ""), cwd=tmp_path)
    assert unnamed.code == 66
    assert_harmless(checked, unnamed)


def test_a_whole_run_and_what_is_told_of_it(tmp_path: Path, provider: Provider) -> None:
    name = f"jobs{EVIL.replace('/', '')[:200]}.jsonl"
    lines = [{"id": kind, "model": "m", "prompt": kind} for kind in ("message", "text", "title", "limit")]
    lines += [
        {"id": "a", "prompt": "x"},
        {"id": "b", "prompt": "gone"},
        {"id": EVIL, "model": "m", "prompt": "x"},
    ]
    lines += [
        {"id": f"{number}", "model": text, "prompt": "x"} for number, text in enumerate(PAYLOADS.values())
    ]
    (tmp_path / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    run = ("run", name, "--base-url", provider.url, "--model", EVIL.replace("\n", ""), "--log-level", "debug")
    ends = [
        at_a_terminal(*run, "-o", "x.jsonl", cwd=tmp_path),
        at_a_terminal(*run, "-o", "x.jsonl", "--retry-failed", cwd=tmp_path),
        batcher(*run, "-o", "y.jsonl", cwd=tmp_path),
        at_a_terminal("status", "x.jsonl", cwd=tmp_path),
        at_a_terminal("status", "x.jsonl", "--json", cwd=tmp_path),
    ]
    assert [done.code for done in ends] == [75, 75, 75, 0, 0]
    assert all("gpj.exe" in done.stdout + done.stderr for done in ends)
    assert_harmless(*ends)


@pytest.mark.parametrize("command", [["models"], ["models", "--json"], ["doctor"]], ids=" ".join)
def test_what_a_provider_calls_its_models(tmp_path: Path, provider: Provider, command: list[str]) -> None:
    done = at_a_terminal(*command, "--base-url", provider.url, cwd=tmp_path)
    assert done.code == 0
    assert_harmless(done)


@pytest.mark.parametrize("name", ["message", "text", "title"])
@pytest.mark.parametrize("command", ["models", "doctor"])
def test_how_a_provider_refuses(tmp_path: Path, command: str, name: str) -> None:
    with evil_provider({"models": ANSWERS[name]}) as refusing:
        done = at_a_terminal(command, "--base-url", refusing.url, cwd=tmp_path)
    assert done.code == 69
    assert_harmless(done)


CONFIGURED = {
    "unknown setting": f"{json.dumps(EVIL)}: 1\n",
    "wrong value": f"provider: {json.dumps(EVIL, ensure_ascii=False)}\n",
    "base URL": f"base_url: {json.dumps(EVIL)}\n",
    "name of a variable": f"api_key_env: {json.dumps(EVIL)}\n",
    "CA file": f"ca_file: {json.dumps(EVIL)}\nbase_url: http://127.0.0.1:9/v1\n",
    "proxy": f"proxy: {json.dumps(EVIL)}\nbase_url: http://127.0.0.1:9/v1\n",
    "deadline": f"deadline: {json.dumps(EVIL)}\n",
    "not YAML": "a: [\x01",
}


@pytest.mark.parametrize("text", CONFIGURED.values(), ids=CONFIGURED.keys())
def test_settings_that_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "batcher.yaml").write_text(text)
    (tmp_path / "jobs.jsonl").write_text('{"id":"a","model":"m","prompt":"x"}\n')
    done = at_a_terminal("run", "jobs.jsonl", "-c", "batcher.yaml", cwd=tmp_path)
    assert done.code == 78
    assert_harmless(done)
