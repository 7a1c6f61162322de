"""Where a key comes from, and where it may go: loading, checking, never showing."""

import ipaddress
import logging
import os
import re
from collections import ChainMap
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn
from urllib.parse import urlsplit

from batcher.errors import ConfigError, KeyMissing

_LOG = logging.getLogger(__name__)
_MAX_FILE_BYTES = 64 * 1024
_KEY = re.compile(r"[\x21-\x7e]+")
_PLACEHOLDER = re.compile(
    r"<.*>|.*(?<![a-z])your[-_ ].*(?:key|token).*|(?:change|replace)[-_]?me|"
    r"(?:gsk_|sk-)(?:x{3,}|\.{3,}|\*{3,})",
    re.IGNORECASE,
)
_OWNERS = {
    "gsk_": "Groq",
    "sk-ant-": "Anthropic",
    "sk-or-": "OpenRouter",
    "sk-": "OpenAI",
    "xai-": "xAI",
    "hf_": "Hugging Face",
    "AIza": "Google",
}
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_HOST = re.compile(r"[a-z0-9._-]+|\[[0-9a-f:.]+\]")
_PATH = re.compile(r"[A-Za-z0-9/._~-]*")


class Secret:
    """An API key that shows itself only where it is sent.

    Raises:
        ConfigError: a header cannot carry it (spaces, control characters, characters outside ASCII).
    """

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        if not _KEY.fullmatch(value):
            raise ConfigError("an API key consists of visible ASCII characters, without spaces")
        self._value = value

    def reveal(self) -> str:
        """Return the key itself."""
        return self._value

    def __repr__(self) -> str:
        return "Secret(***)"

    def __str__(self) -> str:
        return "***"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a key is not written down: pass the name of its variable instead")


def load_key(
    env_name: str, *, environ: Mapping[str, str], env_file: str | Path | None = None, required: bool = True
) -> Secret | None:
    """Find the key in the variable `env_name`, in the file that `env_name`_FILE names, or in `env_file`.

    The environment comes before `env_file`. Nothing of a key ever stands in a message.

    Returns:
        The key, or None where there is none and it is not `required`.

    Raises:
        KeyMissing: there is none.
        ConfigError: there is one that cannot be right, or a file that cannot be read.
    """
    set_values = {name: value for name, value in environ.items() if value.strip()}
    values = ChainMap(set_values, read_env_file(Path(env_file)) if env_file else {})
    file_name = f"{env_name}_FILE"
    if env_name in values:
        return _checked(values[env_name], env_name, env_name)
    if file_name in values:
        return _checked(_read_key_file(Path(values[file_name]), file_name), env_name, file_name)
    if not required:
        return None
    found = f"{env_name} is set, but empty" if env_name in environ else "no API key was found"
    raise KeyMissing(
        f"{found}: set {env_name}, or {file_name} to a file that holds the key, or name a file with "
        f"--env-file; to try without a key, use --simulate"
    )


def read_env_file(file: Path) -> dict[str, str]:
    """Read `NAME=value` lines: `export`, quotes and `#` comments are understood, nothing is expanded.

    Raises:
        ConfigError: the file cannot be read, or a line is something else (`FILE:LINE`, without its text).
    """
    values: dict[str, str] = {}
    for number, raw in enumerate(_read_text(file, "--env-file").split("\n"), start=1):
        line = raw.strip().removeprefix("export ").lstrip()
        if not line or line.startswith("#"):
            continue
        name, equals, value = line.partition("=")
        value = value.strip()
        if not equals or not _NAME.fullmatch(name.strip()):
            raise ConfigError(f"{file}:{number}: expected NAME=value")
        if value[:1] in ("'", '"'):
            value, quote, rest = value[1:].partition(value[0])
            if not quote or (rest.strip() and not rest.lstrip().startswith("#")):
                raise ConfigError(f"{file}:{number}: the quotes do not close at the end of the value")
        else:
            value = re.split(r"(?:^|\s)#", value, maxsplit=1)[0].rstrip()
        if value:
            values[name.strip()] = value
    return values


def check_base_url(url: str, *, insecure_http: bool = False) -> str:
    """Check an API's address and return it without a slash at its end, its host in lower case.

    Plain http is for this machine only, unless `insecure_http` allows it: others could read the key.

    Raises:
        ConfigError: the key must not be sent there, or it is no address of an API.
    """
    try:
        parts = urlsplit(url.strip())
        host, port = parts.hostname or "", parts.port
    except ValueError:
        raise ConfigError("base URL: cannot be read: expected something like https://host/v1") from None
    if parts.username is not None or parts.password is not None:
        raise ConfigError("base URL: holds a user name or password: a key belongs into the environment")
    shown = f"base URL {url.strip()!r}"
    if any(not "!" <= character <= "~" for character in url.strip()):
        raise ConfigError(f"{shown}: expected visible ASCII characters only")
    if parts.scheme not in ("https", "http"):
        raise ConfigError(f"{shown}: expected it to begin with https://")
    if parts.query or parts.fragment or "?" in url or "#" in url:
        raise ConfigError(f"{shown}: expected an address without ? and #")
    literal = f"[{host}]" if ":" in host else host
    segments = [segment for segment in parts.path.split("/") if segment]
    if not _HOST.fullmatch(literal) or not _PATH.fullmatch(parts.path) or {".", ".."} & set(segments):
        raise ConfigError(f"{shown}: expected something like https://host/v1")
    if parts.scheme == "http" and not insecure_http and not _is_this_machine(host):
        raise ConfigError(
            f"{shown}: plain http would show the key and the prompts to the network; use https, "
            f"or --insecure-http if that is meant"
        )
    return "/".join([f"{parts.scheme}://{literal}" + (f":{port}" if port else ""), *segments])


def is_loopback(base_url: str) -> bool:
    """Tell whether a checked address is one of this machine."""
    return _is_this_machine(urlsplit(base_url).hostname or "")


def _is_this_machine(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _checked(text: str, env_name: str, place: str) -> Secret:
    key = text.strip()
    if key[:1] in ("'", '"', "`"):
        raise ConfigError(f"{place}: the key has quotes around it: leave them out")
    if key.lower().startswith("bearer "):
        raise ConfigError(f"{place}: expected the key alone, without 'Bearer'")
    if _PLACEHOLDER.fullmatch(key):
        raise ConfigError(f"{place}: holds a placeholder: put your own key there")
    if not _KEY.fullmatch(key):
        raise ConfigError(
            f"{place}: a key consists of visible ASCII characters; this one has a space, a line break or "
            f"another character at position {_first_bad(key) + 1}"
        )
    owner = next((name for prefix, name in _OWNERS.items() if key.startswith(prefix)), None)
    if "GROQ" in env_name and owner not in (None, "Groq"):
        _LOG.warning("%s: Groq's keys begin with gsk_; this one looks like a key of %s", place, owner)
    return Secret(key)


def _first_bad(key: str) -> int:
    good = _KEY.match(key)
    return good.end() if good else 0


def _read_key_file(file: Path, name: str) -> str:
    text = _read_text(file, name)
    if not text.strip():
        raise ConfigError(f"{name}: {file} is empty")
    return text


def _read_text(file: Path, name: str) -> str:
    try:
        with file.open("rb") as stream:
            data = stream.read(_MAX_FILE_BYTES + 1)
            mode = os.fstat(stream.fileno()).st_mode
    except OSError as error:
        raise ConfigError(f"{name}: {file} cannot be read: {error.strerror}") from None
    if len(data) > _MAX_FILE_BYTES:
        raise ConfigError(f"{name}: {file} is larger than {_MAX_FILE_BYTES} bytes: is this the right file?")
    if mode & 0o002:
        raise ConfigError(f"{name}: everybody may write to {file}: chmod 600 it")
    if mode & 0o044:
        # Mounted secrets are often 0444 in containers, so this is no error.
        _LOG.warning("%s: other users may read %s; chmod 600 it if they are not meant to", name, file)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ConfigError(f"{name}: {file} is not text") from None
