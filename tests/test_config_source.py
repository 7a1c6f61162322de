"""What is wrong with a setting is said with its file, its line, its name and its value, and no secret."""

from pathlib import Path

import pytest

from batcher.config import load_settings
from batcher.config_source import MAX_FILE_BYTES
from batcher.errors import ConfigError


def written(tmp_path: Path, content: bytes) -> Path:
    """Return a file with that content."""
    file = tmp_path / "m.yaml"
    file.write_bytes(content)
    return file


def refusal(tmp_path: Path, text: str) -> str:
    """Return what is said about a file, from its line on."""
    file = written(tmp_path, text.encode())
    with pytest.raises(ConfigError) as caught:
        load_settings(file, {})
    return str(caught.value).removeprefix(f"{file}:")


ACCOUNTS = "accounts:\n  team-b: {keys: [KEY_B]}\n  team-a:\n    keys:\n    - KEY_A\n"

SAID: dict[str, tuple[str, str]] = {
    "the account": (
        f"{ACCOUNTS}    weight: two\n",
        "6: accounts.team-a.weight: expected a number above 0, got 'two'",
    ),
    "the model": ("weights:\n  a: 1\n  b: -1", "3: weights.b: expected a number above 0, got -1"),
    "the place in a list": ("fallback:\n- a\n- 5", "3: fallback[1]: expected text, got 5"),
    "a model that is a number": ("weights:\n  5: 1", "2: weights: expected text as a name, got 5"),
    "a dot in a name": (
        "prices:\n  gpt-4.1:\n    input_usd: 1\n    output_usd: free",
        "4: prices.gpt-4.1.output_usd: expected a number, got 'free'",
    ),
    "what is missing": ("accounts:\n  a:\n    weight: 1", "2: accounts.a: keys is missing"),
    "a list in place of names": ("accounts: [a]", "1: accounts: expected `name: value` pairs, got a list"),
    "names in place of a list": (
        "fallback: {a: 1}",
        "1: fallback: expected a list [a, b], got `name: value` pairs",
    ),
    "a text in place of a list": ("fallback: a", "1: fallback: expected a list [a, b], got 'a'"),
    "nothing": (
        "rpm: 1\ntimeout:",
        "2: timeout: expected a duration (90, 15m, 2h) above 0 and up to 30d, got nothing",
    ),
    "a date": ("rpm: 2026-01-01", "1: rpm: expected a whole number from 1 on, got 2026-01-01"),
    "a flag": ("insecure-http: maybe", "1: insecure_http: expected true or false, got 'maybe'"),
    "half a call": ("rpm: 1.5", "1: rpm: expected a whole number from 1 on, got 1.5"),
    "a long text": (f"rpm: {'x' * 1000}", f"1: rpm: expected a whole number from 1 on, got '{'x' * 55}..."),
    "a text of two lines": ('rpm: "a\\nb"', "1: rpm: expected a whole number from 1 on, got 'a\\nb'"),
    "a line in a section": (
        "retry:\n  server:\n    wait: jitter\n    attempts: many",
        "4: retry.server.attempts: expected a whole number, got 'many'",
    ),
    "a number out of bounds": (
        "breaker:\n  window_s: 1m\n  failure_rate: 50",
        "3: breaker.failure_rate: expected a number above 0 and up to 1, got 50",
    ),
    "a typo": ("rpm: 1\nretry:\n  sever: {}", "3: unknown key 'retry.sever'; did you mean 'server'?"),
    "a preset": ("retry:\n  preset: hard", "2: retry.preset: expected standard or simple, got 'hard'"),
    "a duration": (
        "rpm: 1\ntimeout: soon",
        "2: timeout: 'soon' is not a duration; write seconds or 90s, 15m, 2h, 1d",
    ),
    "a variable twice": (f"{ACCOUNTS}    - KEY_B\n", "6: accounts.team-a.keys: KEY_B is named twice"),
    "a name twice": ("rpm: 1\ntpm: 2\nrpm: 3", "3: rpm is set twice, first in line 1: drop one"),
    "two spellings of a name": (
        "api-key-env: A\napi_key_env: B",
        "2: api_key_env is set twice, first in line 1: drop one",
    ),
    "a name twice inside": (
        "weights:\n  m: 1\n  n: 1\n  m: 2",
        "4: weights.m is set twice, first in line 2: drop one",
    ),
    "a name twice in a list": (
        "fallback:\n- {a: 1, a: 2}",
        "2: fallback[0].a is set twice, first in line 2: drop one",
    ),
}


@pytest.mark.parametrize(("text", "said"), SAID.values(), ids=SAID.keys())
def test_where_it_stands_what_was_expected_and_what_was_seen(tmp_path: Path, text: str, said: str) -> None:
    assert refusal(tmp_path, text) == said


@pytest.mark.parametrize(
    "text",
    [
        "accounts: {a: {keys: SECRET}}",
        "accounts: {a: {keys: [[SECRET]]}}",
        "accounts: {a: {keys: {SECRET: 1}}}",
        "accounts: {a: SECRET}",
        "accounts: {a: [SECRET]}",
        "accounts: SECRET",
        "accounts: {a: {SECRET: 1}}",
        "api_key_env: [SECRET]",
        "api_key_env: SECRET",
        "proxy: [http://me:SECRET@host]",
        "proxy: me:SECRET@host",
        "base_url: {SECRET: 1}",
        "base_url: 5\nproxy: SECRET",
        "rpm: SECRET",
        "provider: SECRET",
        "timeout: SECRET",
        "SECRET: 1",
        "model: a\nSECRET: 1\nSECRET: 1",
        "retry: {preset: SECRET}",
        "model: !!bool SECRET",
    ],
)
def test_a_secret_is_not_shown_wherever_it_stands(tmp_path: Path, text: str) -> None:
    assert "0123456789" not in refusal(tmp_path, text.replace("SECRET", "gsk_0123456789"))


@pytest.mark.parametrize(
    "text",
    [
        "accounts: {a: {keys: 271828}}",
        "accounts: {a: {keys: [271828]}}",
        "accounts: {a: 271828}",
        "accounts: 271828",
        "proxy: 271828",
        "base_url: 271828",
        "api_key_env: 271828",
    ],
)
def test_what_does_not_look_like_a_key_is_not_shown_where_keys_stand(tmp_path: Path, text: str) -> None:
    assert "271828" not in refusal(tmp_path, text)


def test_an_option_has_no_line() -> None:
    with pytest.raises(ConfigError) as caught:
        load_settings(None, {"accounts": {"team-a": {"keys": ["A"], "weight": "two"}}})
    assert str(caught.value) == ("the options: accounts.team-a.weight: expected a number above 0, got 'two'")


def test_the_options_are_not_changed_by_reading_them() -> None:
    given = {"retry": {"preset": "simple", "server": {"longest_wait_s": "1m"}}, "timeout": "2m"}
    load_settings(None, given)
    assert given == {"retry": {"preset": "simple", "server": {"longest_wait_s": "1m"}}, "timeout": "2m"}


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not YAML"):
        load_settings(written(tmp_path, b"model: \xff\xfe"), {})


def test_an_alias_bomb_is_refused_before_it_grows(tmp_path: Path) -> None:
    rows = [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
    with pytest.raises(ConfigError, match="aliases"):
        load_settings(written(tmp_path, ("a0: &a0 lol\n" + "\n".join(rows)).encode()), {})


def test_a_huge_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="larger than 1048576 bytes: is this the configuration file"):
        load_settings(written(tmp_path, b"#" * (MAX_FILE_BYTES + 1)), {})


@pytest.mark.parametrize("name", ["missing.yaml", "."], ids=["missing", "a directory"])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load_settings(tmp_path / name, {})
