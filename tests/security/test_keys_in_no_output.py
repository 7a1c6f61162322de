"""S1-S5, S26, P16: whatever a provider does with a key that it was sent, no byte that is written holds it."""

import gzip
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from command_line import Ended, call, simulator_thread
from evil_provider import Answers, Provider, chat, error, evil_provider, reply
from processes import Done, batcher

from batcher.providers.simulator.fault_plan import parse_faults
from batcher.providers.simulator.settings import SimulatorSettings

KEY = "gsk_5entinelQ7w1Zr8Vt3Xk9Lm2Np6Bd4Hf0Jc5Gs7Ya1Ue8Io"
OTHER_KEY = "sk-0therTokenK2m9Pq4Rt7Vw1Xy6Zb3Cd8Ef5Gh0Jk2Lm9Nq4"
# Long enough that no other text holds one of them by chance, short enough that a cut key shows.
PIECES = [key[at : at + 12].encode() for key in (KEY, OTHER_KEY) for at in range(4, len(key) - 12)]


def with_headers(key: str) -> bytes:
    names = (
        "x-request-id",
        "retry-after",
        "x-ratelimit-limit-requests",
        "x-ratelimit-reset-tokens",
        "server",
    )
    return reply(b"{}", "503 Oops", *(f"{name}: {key}" for name in names), f"{key}: {key}", kind=key)


def detail(key: str) -> bytes:
    return reply(json.dumps({"detail": [{"ctx": {"header": f"Bearer {key}"}}]}).encode(), "400 No")


def packed(key: str) -> bytes:
    return reply(gzip.compress(f'{{"error":"{key}"}}'.encode()), "400 No", "content-encoding: gzip")


def in_chunks(key: str) -> bytes:
    body = chat(key).partition(b"\r\n\r\n")[2]
    at = body.index(key.encode()) + 9
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (body[:at], body[at:], b""))
    return b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n" + chunks


def streamed(key: str) -> bytes:
    events = [{"choices": [{"index": 0, "delta": {"content": key}, "finish_reason": "stop"}]}]
    lines = [f"data: {json.dumps(event)}\n\n" for event in events] + ["data: [DONE]\n\n"]
    return reply("".join(lines).encode(), "200 OK", kind="text/event-stream")


ANSWERS: Answers = {
    "400": lambda key: error(f"do not send {key}"),
    "an encoding": lambda key: reply(
        key.encode(), "200 OK", f"content-encoding: {key}", f"x-request-id: {key}"
    ),
    "400 long": lambda key: error("x" * 2030 + key + "y" * 9000),
    "400 longer": lambda key: error("x" * 4080 + key),
    "400 code": lambda key: error("no", code=key, type=key, param=key),
    "400 nested": detail,
    "400 cut": lambda key: reply(b"z" * 2040 + key.encode() + b"z" * 3000, "400 No", kind="text/plain"),
    "400 gzip": packed,
    "403 page": lambda key: reply(f"<title>{key}</title>".encode(), "404 No", kind="text/html"),
    "404": lambda key: error(f"the endpoint for {key} is gone", "404 No"),
    "413": lambda key: error(f"Request too large for {key}", "413 Large", code="rate_limit_exceeded"),
    "422": lambda key: reply(key.encode(), "422 No", kind=key),
    "429": lambda key: error(f"{key}: RPM: Limit 90000, please try again in 9ms", "429 No"),
    "503 headers": with_headers,
    "500": lambda key: error(f"crashed on {key}", "500 Oops"),
    "503": lambda key: reply(key.encode(), f"503 {key}", "retry-after: 0", kind="text/plain"),
    "redirect": lambda key: reply(b"", "307 There", f"location: http://{key}.example/{key}?key={key}"),
    "redirect home": lambda key: reply(b"", "302 There", f"location: /{key}"),
    "200 answer": lambda key: chat(f"the key is {key}", f"x-request-id: {key}"),
    "200 no JSON": lambda key: reply(f"hello {key}".encode()),
    "200 list": lambda key: reply(json.dumps([key]).encode()),
    "200 error": lambda key: reply(json.dumps({"error": {"message": key}}).encode()),
    "200 choices": lambda key: reply(json.dumps({"choices": [], "note": key}).encode()),
    "200 chunks": in_chunks,
    "200 stream": streamed,
    "200 cut": lambda key: chat(key)[:-20],
    "no HTTP": lambda key: f"{key} {key}\r\n\r\n".encode(),
    "bad header": lambda key: f"HTTP/1.1 200 OK\r\n{key}\r\n\r\n".encode(),
    "bad length": lambda key: f"HTTP/1.1 200 OK\r\ncontent-length: {key}\r\n\r\n".encode(),
    "bad chunk": lambda key: f"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n{key}\r\n".encode(),
}  # fmt: skip
MODELS: Answers = {
    "good": lambda key: reply(json.dumps({"data": [{"id": key, "owned_by": key}]}).encode()),
    **ANSWERS,
    "401": lambda key: error(f"Incorrect API key provided: {key}", "401 No", code="invalid_api_key"),
}
QUICK = """
retry: {network: {attempts: 2, first_wait_s: 0.01}, server: {attempts: 2, first_wait_s: 0.01}, calls: 2,
        rate_limit: {attempts: 1}}
breaker: {failures_in_a_row: 1000, minimum_volume: 1000, first_wait_s: 0.05}
"""


@pytest.fixture(scope="module")
def provider() -> Iterator[Provider]:
    with evil_provider(ANSWERS) as serving:
        yield serving


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A directory with a job for each answer, and settings that do not wait long."""
    lines = [{"id": name, "model": "m", "prompt": name} for name in ANSWERS]
    (tmp_path / "jobs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "quick.yaml").write_text(QUICK)
    return tmp_path


def assert_no_key(directory: Path, *ends: Done | Ended) -> None:
    texts = {f"{stream} of {number}": text.encode() for number, done in enumerate(ends) for stream, text in
             (("stdout", done.stdout), ("stderr", done.stderr))}  # fmt: skip
    files = [path for path in directory.rglob("*") if path.is_file()]
    texts |= {str(path.relative_to(directory)): path.read_bytes() for path in files}
    found = {where: piece for where, text in texts.items() for piece in PIECES if piece in text}
    assert not found
    assert not [path for path in directory.rglob("*") if any(piece.decode() in path.name for piece in PIECES)]


def test_a_provider_that_repeats_the_key(here: Path, provider: Provider) -> None:
    run = ("run", "jobs.jsonl", "-c", "quick.yaml", "--base-url", provider.url, "--log-level", "debug")
    ends = [
        batcher(*command, cwd=here, env={"OPENAI_API_KEY": KEY})
        for command in (
            [*run, "--json"],
            [*run, "--retry-failed"],
            [*run, "-o", "-"],
            [*run, "--show-config"],
            ["status", "results/jobs.jsonl", "--json"],
        )
    ]
    assert [done.code for done in ends] == [3, 3, 3, 0, 0], [done.stderr[-500:] for done in ends]
    errors = (here / "results" / "jobs.errors.jsonl").read_text().splitlines()
    assert {json.loads(line)["custom_id"] for line in errors} >= {"400", "422", "429", "redirect", "404"}
    assert_no_key(here, *ends)


FORMS: dict[str, tuple[dict[str, str], list[str], dict[str, str]]] = {
    "other variable, padded": ({"MY_KEY": f" {KEY}\n"}, ["--api-key-env", "MY_KEY"], {}),
    "file": ({"OPENAI_API_KEY_FILE": "../key"}, [], {"key": f"{KEY}\n"}),
    "env file": ({}, ["--env-file", "../env"], {"env": f"export OPENAI_API_KEY='{KEY}'\n"}),
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
def test_a_key_that_comes_in_another_way(
    tmp_path: Path, provider: Provider, form: tuple[dict[str, str], list[str], dict[str, str]]
) -> None:
    variables, options, files = form
    for name, text in files.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o600)
    here = tmp_path / "here"
    here.mkdir()
    lines = [{"id": name, "model": "m", "prompt": name} for name in ("400", "redirect", "200 answer", "404")]
    (here / "jobs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    run = ("run", "jobs.jsonl", "--base-url", provider.url, *options, "--log-level", "debug")
    done = batcher(*run, cwd=here, env=variables)
    assert done.code == 3, done.stderr
    assert KEY.encode() in provider.requests[-1]
    assert_no_key(here, done)


@pytest.mark.parametrize("name", MODELS)
def test_a_provider_that_repeats_the_key_to_other_commands(tmp_path: Path, name: str) -> None:
    with evil_provider({"models": MODELS[name]}) as provider:
        ends = [
            call(*command, "--base-url", provider.url, cwd=tmp_path, OPENAI_API_KEY=KEY)
            for command in (["models", "--json"], ["doctor"])
        ]
    assert_no_key(tmp_path, *ends)


def test_a_refused_key_is_not_repeated(here: Path) -> None:
    (here / "accounts.yaml").write_text("accounts: {a: {keys: [KEY_A]}, b: {keys: [KEY_B]}}\n")
    with evil_provider(dict.fromkeys(ANSWERS, MODELS["401"])) as provider:
        run = ("run", "jobs.jsonl", "-c", "accounts.yaml", "--base-url", provider.url, "--log-level", "debug")
        done = batcher(*run, cwd=here, env={"KEY_A": KEY, "KEY_B": OTHER_KEY})
        sent = b"".join(provider.requests)
    assert done.code == 77, done.stderr
    assert KEY.encode() in sent
    assert OTHER_KEY.encode() in sent
    assert_no_key(here, done)


def test_a_run_amid_all_faults(here: Path) -> None:
    count = 300
    lines = [{"id": f"{number}", "model": "m", "prompt": "x"} for number in range(count)]
    (here / "jobs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (here / "quick.yaml").write_text("retry: {network: {first_wait_s: 0.1}, server: {first_wait_s: 0.1}}\n")
    plan = parse_faults(["mixed=0.2"], max_in_a_row=2, redirect_to="http://127.0.0.1:9/")
    with simulator_thread(SimulatorSettings(faults=plan, keys=frozenset({KEY}), latency_s=0.01)) as server:
        run = ("run", "jobs.jsonl", "-c", "quick.yaml", "--base-url", f"{server.url}/v1", "--timeout", 2)
        done = batcher(*run, "--log-level", "debug", cwd=here, env={"OPENAI_API_KEY": KEY})
    assert done.code == 0, done.stderr[-500:]
    assert len((here / "results" / "jobs.jsonl").read_text().splitlines()) == count
    assert_no_key(here, done)


def test_no_option_takes_a_key_and_none_that_is_given_is_repeated(here: Path) -> None:
    for args in ([f"--api-key={KEY}"], ["--api-key", KEY], ["--api-key-env", KEY], ["--key", KEY]):
        done = batcher("run", "jobs.jsonl", *args, cwd=here)
        assert done.code in (2, 78)
        assert_no_key(here, done)


NO_KEYS = {
    "newline": f"{KEY}\n{KEY}",
    "carriage return": f"{KEY}\r\nx-evil: 1",
    "space": f"{KEY[:20]} {KEY[20:]}",
    "umlaut": f"{KEY}ä",
    "quotes": f'"{KEY}"',
    "Bearer": f"Bearer {KEY}",
    "control": f"{KEY}\x1b[2J",
    "surrogate": os.fsdecode(KEY.encode() + b"\xff"),
}


@pytest.mark.parametrize("value", NO_KEYS.values(), ids=NO_KEYS.keys())
def test_a_key_that_cannot_be_one_is_refused_without_showing_it(
    here: Path, provider: Provider, value: str
) -> None:
    calls = len(provider.requests)
    for command in (["run", "jobs.jsonl"], ["doctor"], ["models"]):
        debug = {"BATCHER_LOG_LEVEL": "debug"} if command[0] == "run" else {}
        done = call(*command, "--base-url", provider.url, cwd=here, OPENAI_API_KEY=value, **debug)
        assert done.code == 78, done.stderr
        assert_no_key(here, done)
    assert len(provider.requests) == calls
