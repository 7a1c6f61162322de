"""Where settings stand, a file or the options: their values, their lines, and what is wrong with them."""

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import msgspec
from msgspec import inspect

from batcher.errors import ConfigError
from batcher.text.terminal import on_one_line

if TYPE_CHECKING:
    import yaml

Keys: TypeAlias = tuple[str | int, ...]
"""The way to a value: names, and positions in lists."""

MAX_FILE_BYTES = 1024 * 1024
FINITE = sys.float_info.max
"""An upper bound that only infinity is beyond."""

WORKABLE = 2**63 - 1
"""An upper bound beyond which arithmetic fails."""

DURATIONS = frozenset({"timeout", "grace", "connect_timeout", "max_runtime"})

_HIDDEN = {"proxy", "base_url", "api_key_env"}  # a key or a password may stand there
_API_KEY = re.compile(r"\b(?:gsk_|sk-|xai-)[0-9A-Za-z_*-]{8,}")
_STEP = re.compile(r"\.([^.\[`]+)|\[(\d+|\.\.\.)\]|(key)` in ")
_LONGEST_SHOWN = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Settings of one place.

    Attributes:
        name: of the place, as it stands in messages.
        values: as written there.
        lines: of the file, counted from 1, by the way to what stands there; empty for options.
    """

    name: str
    values: Mapping[str, Any]
    lines: Mapping[Keys, int] = field(default_factory=dict)

    def where(self, keys: Keys) -> str:
        """Return the place of a value, with its line or that of what it stands in."""
        for end in range(len(keys), -1, -1):
            if (line := self.lines.get(keys[:end])) is not None:
                return f"{self.name}:{line}"
        return self.name

    def error(self, keys: Keys, what: str) -> ConfigError:
        """Return an error that says where, and `what` is wrong there."""
        return ConfigError(f"{self.where(keys)}: {_without_keys(what)}")

    def refusal(self, keys: Keys, what: str) -> ConfigError:
        """Return an error that says where, the name of the setting, and `what` is wrong with it."""
        return self.error(keys, f"{dotted(keys)}: {what}")

    def refused_value(self, keys: Keys, kind: inspect.Type) -> ConfigError:
        """Return an error that says what was expected in place of the value, and shows it if it may be."""
        value: Any = self.values
        for key in keys:
            value = value[key]
        hidden = keys[0] in _HIDDEN or (keys[0] == "accounts" and keys[-1] != "weight")
        seen = _kind_of(value) if hidden else _seen(value)
        return self.refusal(keys, f"expected {_expected(kind, str(keys[-1]))}, got {seen}")

    def refused(self, error: msgspec.ValidationError, values: Mapping[str, Any], schema: type) -> ConfigError:
        """Return in words what msgspec refused as it made a `schema` of `values`."""
        said, _, path = str(error).partition(" - at `")
        keys: Keys = ()
        kind = inspect.type_info(schema)
        of_key = False
        for name, item, key in _STEP.findall(path):
            if key:
                of_key = True
                continue
            # msgspec does not say which entry of a section it is.
            keys += (_culprit(values, keys[0], schema) if item == "..." else int(item) if item else name,)
            kind = _inside(kind, name)
        if of_key:
            culprit = _culprit(values, keys[0], schema)
            return self.error(
                (*keys, str(culprit)), f"{dotted(keys)}: expected text as a name, got {_seen(culprit)}"
            )
        if missing := re.fullmatch(r"Object missing required field `(\w+)`", said):
            return self.refusal(keys, f"{missing[1]} is missing")
        return self.refused_value(keys, kind)


def read_file(file: Path) -> Source:
    """Return what a YAML file sets; dashes in the names of settings are as good as underscores.

    Raises:
        ConfigError: it cannot be read, is not YAML, or sets a name twice.
    """
    import yaml  # noqa: PLC0415 - takes 10 ms, needed only where there is a file

    try:
        with file.open("rb") as stream:
            text = stream.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}") from None
    if len(text) > MAX_FILE_BYTES:
        raise ConfigError(f"{file}: larger than {MAX_FILE_BYTES} bytes: is this the configuration file?")
    lines: dict[Keys, int] = {}
    # Aliases can make a small file enormous once expanded, and a configuration has no use for them.
    try:
        if any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text)):
            raise ConfigError(f"{file}: YAML aliases (*name) are not taken: write the value out")
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is not None:
            _note_lines(node, (), lines, file)
        values = None if node is None else loader.construct_document(node)
    except (yaml.YAMLError, RecursionError, ValueError, KeyError, AttributeError) as error:
        # The last three are how PyYAML fails on a date such as 2026-13-01, `!!bool x` and `!!timestamp x`.
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        problem = _without_keys(getattr(error, "problem", None) or str(error))
        raise ConfigError(f"{file}{line}: not YAML: {problem}") from None
    if values is None:
        return Source(name=str(file), values={})
    if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
        raise ConfigError(f"{file}: expected `name: value` lines, such as `model: openai/gpt-oss-20b`")
    named = {name.replace("-", "_"): value for name, value in values.items()}
    return Source(name=str(file), values=named, lines=lines)


def is_duration(name: str) -> bool:
    """Return whether a number of that name is a time in seconds, which may be written as 15m, too."""
    return name in DURATIONS or name.endswith("_s")


def dotted(keys: Keys) -> str:
    """Return the way to a value as it stands in messages, such as `accounts.team-a.keys[0]`."""
    return "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in keys).removeprefix(".")


def _note_lines(node: "yaml.Node", keys: Keys, lines: dict[Keys, int], file: Path) -> None:
    """Note on which lines the values stand; YAML itself would take the last of two values of one name."""
    import yaml  # noqa: PLC0415 - see `read_file`

    if isinstance(node, yaml.SequenceNode):
        for position, item in enumerate(node.value):
            lines[*keys, position] = item.start_mark.line + 1
            _note_lines(item, (*keys, position), lines, file)
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            inner = (*keys, key.value if keys else key.value.replace("-", "_"))
            line = key.start_mark.line + 1
            if inner in lines:
                what = f"{dotted(inner)} is set twice, first in line {lines[inner]}: drop one"
                raise ConfigError(f"{file}:{line}: {_without_keys(what)}")
            lines[inner] = line
            _note_lines(value, inner, lines, file)


def _without_keys(text: str) -> str:
    return on_one_line(_API_KEY.sub("***", text))


def _culprit(values: Mapping[str, Any], section: str | int, schema: type) -> Any:
    """Return the name of the first entry of a section that is refused by itself."""
    entries = values[str(section)]
    for name, entry in entries.items():
        try:
            msgspec.convert({section: {name: entry}}, schema, strict=True)
        except msgspec.ValidationError:
            return name
    raise AssertionError("a refused section has an entry that is refused")


def _inside(kind: inspect.Type, name: str) -> inspect.Type:
    """Return the type of a field, or of the entries and items where `name` is empty."""
    kind = _given(kind)
    if isinstance(kind, inspect.DictType):
        return kind.value_type
    if isinstance(kind, inspect.VarTupleType):
        return kind.item_type
    assert isinstance(kind, inspect.StructType | inspect.DataclassType)
    return next(one.type for one in kind.fields if one.encode_name == name)


def _given(kind: inspect.Type) -> inspect.Type:
    """Return the type without the null that stands for a setting that is not made."""
    if isinstance(kind, inspect.UnionType):
        return next(one for one in kind.types if not isinstance(one, inspect.NoneType))
    return kind


def _expected(kind: inspect.Type, name: str) -> str:
    kind = _given(kind)
    if isinstance(kind, inspect.LiteralType):
        return " or ".join(map(str, kind.values))
    if isinstance(kind, inspect.IntType):
        return "a whole number" + _bounds(kind, in_s=False)
    if isinstance(kind, inspect.FloatType):
        in_s = is_duration(name)
        return ("a duration (90, 15m, 2h)" if in_s else "a number") + _bounds(kind, in_s=in_s)
    if isinstance(kind, inspect.VarTupleType):
        return "a list [a, b]" + (f" of {kind.min_length} or more" if kind.min_length else "")
    if isinstance(kind, inspect.BoolType):
        return "true or false"
    return "text" if isinstance(kind, inspect.StrType) else "`name: value` pairs"


def _bounds(kind: inspect.IntType | inspect.FloatType, *, in_s: bool) -> str:
    lowest = f" above {kind.gt:.15g}" if kind.gt is not None else ""
    if kind.ge is not None:
        lowest = f" from {kind.ge:.15g}"
    if kind.le is None or kind.le in (FINITE, WORKABLE):
        return lowest + (" on" if kind.ge is not None else "")
    day_s, minute_s = 86400, 60
    highest = f"{kind.le:.15g}"
    if in_s and kind.le % minute_s == 0:
        highest = f"{kind.le // day_s:.0f}d" if kind.le % day_s == 0 else f"{kind.le // minute_s:.0f}m"
    return f"{lowest}{' to' if kind.ge is not None else ' and up to'} {highest}"


def _seen(value: object) -> str:
    if value is None or isinstance(value, bool | list | tuple | dict):
        return str(value).lower() if isinstance(value, bool) else _kind_of(value)
    if isinstance(value, int) and abs(value) > WORKABLE:
        return "a number of more than 64 bits"
    text = repr(value[:_LONGEST_SHOWN]) if isinstance(value, str) else str(value)
    return text if len(text) <= _LONGEST_SHOWN else f"{text[: _LONGEST_SHOWN - 4]}..."


def _kind_of(value: object) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, list | tuple):
        return "a list" if value else "an empty list"
    if isinstance(value, dict):
        return "`name: value` pairs"
    return "text" if isinstance(value, str) else f"a value of type {type(value).__name__}"
