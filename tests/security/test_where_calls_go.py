"""S5, S6: no line and no variable chooses where a call goes, what it carries, or how long it takes."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from command_line import call
from evil_provider import Provider, evil_provider
from processes import batcher

KEY = "sk-0wnKey9m2Xq7Vt4Zr8Lc5Np1"
ELSEWHERE = "http://127.0.0.1:9/v1"
FIELDS = {
    "base_url": ELSEWHERE,
    "host": "127.0.0.1:9",
    "endpoint": ELSEWHERE,
    "headers": {"authorization": "Bearer stolen"},
    "extra_headers": {"x-evil": "1"},
    "extra_query": {"evil": "1"},
    "extra_body": {"evil": 1},
    "api_key": "stolen",
    "authorization": "Bearer stolen",
    "organization": "org-evil",
    "proxy": ELSEWHERE,
    "timeout": 0.001,
    "provider": "groq",
    "account": "evil",
    "follow_redirects": True,
    "insecure_http": True,
    "ca_file": "/dev/null",
    "env_file": "/etc/passwd",
}


@pytest.fixture
def provider() -> Iterator[Provider]:
    with evil_provider({}) as serving:
        yield serving


def batch(**fields: object) -> dict[str, object]:
    body = {"model": "m", "messages": [{"role": "user", "content": "x"}]}
    return {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": body, **fields}


@pytest.mark.parametrize("form", ["short", "batch"])
def test_a_field_beside_the_request_is_a_bad_line(tmp_path: Path, provider: Provider, form: str) -> None:
    own = batch() if form == "batch" else {"id": "a", "model": "m", "prompt": "x"}
    lines = [json.dumps({**own, name: value}) for name, value in FIELDS.items()]
    (tmp_path / "jobs.jsonl").write_text("\n".join(lines))
    done = batcher("run", "jobs.jsonl", "--base-url", provider.url, cwd=tmp_path, env={"OPENAI_API_KEY": KEY})
    assert done.code == 65
    for number, name in enumerate(FIELDS, start=1):
        [reported] = [line for line in done.stderr.splitlines() if line.startswith(f"jobs.jsonl:{number}: ")]
        assert f'"{name}"' in reported
    assert "stolen" not in done.stderr
    assert provider.requests == []


URLS = [
    f"{ELSEWHERE}/chat/completions",
    "//127.0.0.1:9/v1/chat/completions",
    "/v1/chat/completions?x=1",
    "/v1/chat/completions#x",
    "/v1/chat/completions/",
    "/v1/chat/completions\r\nx-evil: 1",
    "/v1/chat/../files",
    "/v1/%63hat/completions",
    "/v1/files",
    "/v1/batches",
    "@127.0.0.1:9/v1/chat/completions",
    "/openai/v1/chat/completions",
    "",
]


def test_a_url_is_one_of_three_paths(tmp_path: Path, provider: Provider) -> None:
    lines = [json.dumps(batch(custom_id=str(number), url=url)) for number, url in enumerate(URLS)]
    lines += [json.dumps(batch(method=method)) for method in ("GET", "DELETE", "post", "POST / HTTP/1.1\r\n")]
    (tmp_path / "jobs.jsonl").write_text("\n".join(lines))
    done = batcher("run", "jobs.jsonl", "--base-url", provider.url, cwd=tmp_path, env={"OPENAI_API_KEY": KEY})
    assert done.code == 65
    assert [f"jobs.jsonl:{number}: " in done.stderr for number in range(1, len(lines) + 1)] == [True] * len(
        lines
    )
    assert provider.requests == []


def test_what_stands_in_a_body_stays_in_the_body(tmp_path: Path, provider: Provider) -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": "x"}], **FIELDS}
    (tmp_path / "jobs.jsonl").write_text(json.dumps(batch(body=body)))
    done = batcher("run", "jobs.jsonl", "--base-url", provider.url, cwd=tmp_path, env={"OPENAI_API_KEY": KEY})
    assert done.code == 0, done.stderr
    [request] = provider.requests
    head, _, sent = request.partition(b"\r\n\r\n")
    assert head.startswith(b"POST /v1/chat/completions HTTP/1.1\r\n")
    assert head.lower().count(b"authorization: ") == 1
    assert f"authorization: Bearer {KEY}".lower().encode() in head.lower()
    assert b"evil" not in head
    assert json.loads(sent) == body


VARIABLES = {
    **dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"), ELSEWHERE),
    **dict.fromkeys(("http_proxy", "https_proxy", "all_proxy"), ELSEWHERE),
    **dict.fromkeys(("GROQ_BASE_URL", "OPENAI_BASE_URL", "OPENAI_API_BASE", "OPENAI_API_HOST"), ELSEWHERE),
    "REQUEST_METHOD": "GET",
    "OPENAI_ORG_ID": "org-evil",
    "OPENAI_PROJECT_ID": "evil",
    "GROQ_CUSTOM_HEADERS": "x-evil: 1",
    "OPENAI_CUSTOM_HEADERS": "x-evil: 1",
    "NETRC": "/etc/passwd",
    "GROQ_LOG": "debug",
    "OPENAI_LOG": "debug",
    "RUST_LOG": "trace",
    "SSLKEYLOGFILE": "keys.log",
    "PYTHONASYNCIODEBUG": "1",
    "REQUESTS_CA_BUNDLE": "/dev/null",
    "CURL_CA_BUNDLE": "/dev/null",
}  # fmt: skip


@pytest.mark.parametrize("kind", ["groq", "openai-compatible"])
def test_no_variable_of_another_program_moves_a_call(tmp_path: Path, provider: Provider, kind: str) -> None:
    (tmp_path / "jobs.jsonl").write_text('{"id":"a","model":"m","prompt":"a-private-prompt"}\n')
    url = provider.url.removesuffix("/v1") if kind == "groq" else provider.url
    options = ("--provider", kind, "--base-url", url, "--api-key-env", "MY_KEY")
    keys = {"MY_KEY": KEY, "GROQ_API_KEY": "gsk_stolen0123456789", "OPENAI_API_KEY": "sk-stolen0123456789"}
    ends = [
        batcher(*command, *options, cwd=tmp_path, env=VARIABLES | keys)
        for command in (["run", "jobs.jsonl", "--log-level", "debug"], ["models"], ["doctor"])
    ]
    assert ends[0].code == 0, ends[0].stderr
    assert len(provider.requests) == 3, ends
    for request in provider.requests:
        head = request.partition(b"\r\n\r\n")[0]
        assert KEY.encode() in head
        assert b"stolen" not in head
        assert b"evil" not in head
    assert not [done for done in ends if KEY in done.stdout + done.stderr]
    assert not [done for done in ends if "a-private-prompt" in done.stdout + done.stderr]
    assert not (tmp_path / "keys.log").exists()


IN_THE_CLEAR = [
    "http://192.0.2.1/v1",
    "http://example.invalid/v1",
    "http://0.0.0.0:9/v1",
    "http://127.0.0.1.example.invalid/v1",
    "http://localhost.example.invalid/v1",
    "http://127.0.0.1@example.invalid/v1",
    "http://[2001:db8::1]/v1",
    "http://2130706433/v1",
    "http://127.1/v1",
    "ftp://127.0.0.1/v1",
    "file:///etc/passwd",
    "//127.0.0.1/v1",
]


@pytest.mark.parametrize("url", IN_THE_CLEAR)
@pytest.mark.parametrize(
    "command", [["run", "jobs.jsonl"], ["models"], ["doctor"]], ids=lambda words: words[0]
)
def test_no_key_travels_in_the_clear(tmp_path: Path, command: list[str], url: str) -> None:
    (tmp_path / "jobs.jsonl").write_text('{"id":"a","model":"m","prompt":"x"}\n')
    ended = call(*command, "--base-url", url, cwd=tmp_path, OPENAI_API_KEY=KEY)
    assert ended.code == 78, ended.stderr
    assert KEY not in ended.stdout + ended.stderr
