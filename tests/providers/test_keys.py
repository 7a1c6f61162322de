"""Where keys come from, what is said about bad ones, and that no message ever holds one."""

import logging
import pickle
from pathlib import Path

import pytest

from batcher.errors import ConfigError, KeyMissing
from batcher.providers.keys import Secret, check_base_url, is_loopback, load_key, read_env_file

KEY = "gsk_Sentinel0123456789abcdef"


def write(file: Path, text: str, mode: int = 0o600) -> Path:
    file.write_text(text, encoding="utf-8")
    file.chmod(mode)
    return file


def test_a_secret_shows_itself_only_when_asked() -> None:
    secret = Secret(KEY)
    assert secret.reveal() == KEY
    assert KEY not in f"{secret} {secret!r} {[secret]}"
    with pytest.raises(TypeError):
        pickle.dumps(secret)


@pytest.mark.parametrize("value", ["", "a b", "a\n", "ключ", "a\x7f"])
def test_a_secret_always_fits_a_header(value: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Secret(value)
    assert not value or value not in str(caught.value)


def test_the_variable_comes_before_its_file_and_the_env_file(tmp_path: Path) -> None:
    key_file = write(tmp_path / "key", f"{KEY}-file\n")
    env_file = write(tmp_path / ".env", f"export GROQ_API_KEY='{KEY}-env' # mine\n")
    both = {"GROQ_API_KEY": f" {KEY}\n", "GROQ_API_KEY_FILE": str(key_file)}

    def found(environ: dict[str, str], env: Path | None) -> str:
        secret = load_key("GROQ_API_KEY", environ=environ, env_file=env)
        assert secret is not None
        return secret.reveal()

    assert found(both, env_file) == KEY
    assert found({"GROQ_API_KEY": "", "GROQ_API_KEY_FILE": str(key_file)}, None) == f"{KEY}-file"
    assert found({}, env_file) == f"{KEY}-env"


def test_without_a_key_the_message_says_what_to_set() -> None:
    with pytest.raises(KeyMissing, match=r"GROQ_API_KEY_FILE.*--env-file.*--simulate"):
        load_key("GROQ_API_KEY", environ={})
    with pytest.raises(KeyMissing, match="is set, but empty"):
        load_key("GROQ_API_KEY", environ={"GROQ_API_KEY": " "})
    assert load_key("OPENAI_API_KEY", environ={}, required=False) is None


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (f'"{KEY}"', "quotes"),
        (f"'{KEY}'", "quotes"),
        (f"Bearer {KEY}", "without 'Bearer'"),
        (f"{KEY[:9]} {KEY[9:]}", "position 10"),
        (f"{KEY}\n{KEY}", f"position {len(KEY) + 1}"),
        (f"{KEY}é", "visible ASCII"),
        ("your-key", "placeholder"),
        ("gsk_your_api_key_here", "placeholder"),
        ("<GROQ KEY>", "placeholder"),
        ("sk-...", "placeholder"),
        ("changeme", "placeholder"),
    ],
)
def test_a_key_that_cannot_be_right_is_explained_without_showing_it(value: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        load_key("GROQ_API_KEY", environ={"GROQ_API_KEY": value})
    assert "GROQ_API_KEY" in str(caught.value)
    assert KEY[:9] not in str(caught.value)


@pytest.mark.parametrize("value", ["EMPTY", "ollama", "x", "test", "yourself-0123"])
def test_the_odd_keys_of_local_servers_are_taken(value: str) -> None:
    assert load_key("OPENAI_API_KEY", environ={"OPENAI_API_KEY": value}) is not None


def test_a_key_of_somebody_else_is_taken_with_a_hint(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert load_key("GROQ_API_KEY", environ={"GROQ_API_KEY": "sk-ant-0123456789"}) is not None
        assert "looks like a key of Anthropic" in caplog.text
        caplog.clear()
        load_key("GROQ_API_KEY", environ={"GROQ_API_KEY": KEY})
        load_key("OPENAI_API_KEY", environ={"OPENAI_API_KEY": KEY})
    assert not caplog.text


def test_who_may_read_a_key_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = write(tmp_path / "key", KEY, mode=0o644)
    with caplog.at_level(logging.WARNING):
        assert load_key("K", environ={"K_FILE": str(file)}) is not None
    assert "other users may read" in caplog.text
    file.chmod(0o606)
    with pytest.raises(ConfigError, match="everybody may write"):
        load_key("K", environ={"K_FILE": str(file)})


@pytest.mark.parametrize(
    ("content", "says"),
    [(b"", "is empty"), (b"\xff\xfe", "not text"), (b"x" * 70_000, "larger than"), (None, "cannot be read")],
)
def test_key_files_that_cannot_be_used(tmp_path: Path, content: bytes | None, says: str) -> None:
    file = tmp_path / "key"
    if content is not None:
        file.write_bytes(content)
        file.chmod(0o600)
    with pytest.raises(ConfigError, match=f"K_FILE: .*{says}"):
        load_key("K", environ={"K_FILE": str(file)})


def test_env_files(tmp_path: Path) -> None:
    text = (
        "\ufeff# a comment\r\n\nA=1\nexport B = two words # three\n"
        "C='# not a comment' # but this\nD=\"a=b\"\nE=\nF=x#y\nA=9\n"
    )
    assert read_env_file(write(tmp_path / ".env", text)) == {
        "A": "9",
        "B": "two words",
        "C": "# not a comment",
        "D": "a=b",
        "F": "x#y",
    }


@pytest.mark.parametrize("line", ["just text", "1A=b", "A='b", "A='b' c", "=b"])
def test_a_line_of_an_env_file_that_is_not_understood(tmp_path: Path, line: str) -> None:
    with pytest.raises(ConfigError, match=r"\.env:2: ") as caught:
        read_env_file(write(tmp_path / ".env", f"OK=1\n{line}\n"))
    assert line not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "checked"),
    [
        ("https://api.openai.com/v1", "https://api.openai.com/v1"),
        (" https://API.OpenAI.com//v1/ ", "https://api.openai.com/v1"),
        ("https://api.groq.com", "https://api.groq.com"),
        ("https://host:8443/a/b/", "https://host:8443/a/b"),
        ("http://localhost:8000/v1", "http://localhost:8000/v1"),
        ("http://127.0.0.9:1", "http://127.0.0.9:1"),
        ("http://[::1]:8000/v1", "http://[::1]:8000/v1"),
    ],
)
def test_base_urls(url: str, checked: str) -> None:
    assert check_base_url(url) == checked
    assert check_base_url(checked) == checked


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("http://api.openai.com/v1", "--insecure-http"),
        ("http://127.0.0.1.evil.org/v1", "--insecure-http"),
        ("http://localhost@evil.org/", "user name"),
        ("https://user:hunter2@host/v1", "user name"),
        ("https://host/v1?key=1", "without \\? and #"),
        ("https://host/v1#x", "without \\? and #"),
        ("https://host/../x", "expected something like"),
        ("https://host:99999/v1", "cannot be read"),
        ("https://ho st/v1", "visible ASCII"),
        ("https://host\\@evil/v1", "user name|expected"),
        ("https:///v1", "expected something like"),
        ("https://hôst/v1", "visible ASCII"),
        ("ftp://host/v1", "https://"),
        ("api.openai.com/v1", "https://"),
        ("", "https://"),
    ],
)
def test_addresses_that_no_key_is_sent_to(url: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        check_base_url(url)
    assert "hunter2" not in str(caught.value)


def test_plain_http_to_others_has_to_be_allowed() -> None:
    assert check_base_url("http://10.0.0.5:8000/v1", insecure_http=True) == "http://10.0.0.5:8000/v1"
    assert is_loopback("http://localhost:8000/v1")
    assert not is_loopback("http://10.0.0.5:8000/v1")
