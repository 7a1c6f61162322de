"""What each field of a line may hold, as tables."""

import difflib
import json
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias, get_args

import orjson

from batcher.errors import BadLine
from batcher.types import ENDPOINTS, JobKind

MAX_NAME_CHARS = 256
_LONGEST_NAME_CHARS = 40


class Rule(NamedTuple):
    """A condition on a value, and the words for it: "expected <these words>"."""

    holds: Callable[[Any], bool]
    expected: str


Rules: TypeAlias = Mapping[str, Rule]


def check_known_fields(fields: Mapping[str, Any], rules: Rules, *, form: str) -> None:
    """Check every field, and that there is a rule for it.

    Raises:
        BadLine: names the first field that is wrong.
    """
    for name, value in fields.items():
        rule = rules.get(name)
        if rule is None:
            raise BadLine(_unknown_field(name, rules, form))
        if not rule.holds(value):
            raise wrong(name, value, rule)


def check_params(params: Mapping[str, Any]) -> None:
    """Check the well-known parameters of a chat; the others are the provider's business.

    Raises:
        BadLine: names the first parameter that is wrong.
    """
    for name, value in params.items():
        rule = _PARAM_RULES.get(name)
        if rule is not None and not rule.holds(value):
            raise wrong(f"params.{name}", value, rule)
        # By name only: the value may be a secret.
        if name in _CONNECTION:
            raise BadLine(f'"params.{name}" cannot stand in a line: {_CONNECTION_HINT}')
        if name in _BESIDE_PARAMS:
            raise BadLine(f'"{name}" cannot stand in "params": it stands beside "params"')


def wrong(name: str, value: object, rule: Rule) -> BadLine:
    """Build the error for a field whose value breaks its rule."""
    return BadLine(f'"{name}" is {seen(value)}: expected {rule.expected}')


def seen(value: object) -> str:
    """Show a value in a message: short, on one line, without control characters."""
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return "a list" if value else "an empty list"
    text = json.dumps(value if not isinstance(value, str) else value[:60])
    return text if len(text) <= 60 else f"{text[:56]}..."


def _unknown_field(name: str, rules: Rules, form: str) -> str:
    if name in _CONNECTION:
        return f'"{name}" cannot stand in a line: {_CONNECTION_HINT}'
    reason = f"unknown field {seen(name)} in a {form}"
    if form == "short line" and name in _PARAM_RULES:
        return f'{reason}: put it into "params"'
    # Bounded, as the comparison holds every position of a name: 600 MB for one of 15 MB.
    if close := difflib.get_close_matches(name[:_LONGEST_NAME_CHARS], rules, n=1):
        return f'{reason}: did you mean "{close[0]}"?'
    return f"{reason}: expected {', '.join(rules)}"


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_name(value: object) -> bool:
    # isprintable() is false for control, format (bidi), surrogate, private and unassigned characters.
    return isinstance(value, str) and 0 < len(value) <= MAX_NAME_CHARS and value.isprintable()


def _is_id(value: object) -> bool:
    return _is_name(value) or _is_integer(value)


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value)


def _is_list_of_names(value: object) -> bool:
    return isinstance(value, list) and all(map(_is_name, value))


def _is_list_of_text(value: object) -> bool:
    return isinstance(value, list) and all(map(_is_text, value))


def _is_list_of_messages(value: object) -> bool:
    if not isinstance(value, list):
        return False
    for message in value:
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            return False
    return bool(value)


def _is_shallow_object(value: object) -> bool:
    if not isinstance(value, dict):
        return False
    try:
        orjson.dumps(value)
    except TypeError:
        return False
    return True


_TEXT = Rule(_is_text, "a non-empty string")
MODEL = Rule(_is_name, f"a non-empty string of up to {MAX_NAME_CHARS} printable characters")
_ID = Rule(
    _is_id, f"a string of 1 to {MAX_NAME_CHARS} printable characters, or an integer (or no such field at all)"
)
_OBJECT = Rule(_is_shallow_object, "an object, nested at most 250 deep")
MESSAGES = Rule(_is_list_of_messages, 'a non-empty list of objects, each with a "role" that is a string')
INPUT = Rule(lambda value: isinstance(value, str | list) and bool(value), "a non-empty string or list")
_COUNT = Rule(lambda value: value is None or (_is_integer(value) and value > 0), "an integer of at least 1")
_NUMBER = Rule(lambda value: value is None or _is_number(value), "a number")

_BESIDE_BODY: Rules = {
    "priority": Rule(
        lambda value: _is_integer(value) and -(2**15) <= value < 2**15,
        "an integer from -32768 to 32767 (higher runs first)",
    ),
    "fallback": Rule(_is_list_of_names, "a list of model names"),
    "deadline_s": Rule(
        lambda value: _is_number(value) and value > 0 and math.isfinite(value), "a number of seconds above 0"
    ),
    "metadata": _OBJECT,
    "schema": _OBJECT,
}

BATCH_RULES: Rules = {
    "custom_id": _ID,
    "method": Rule(lambda value: value == "POST", 'the string "POST"'),
    "url": Rule(
        lambda value: isinstance(value, str) and value in ENDPOINTS,
        f"one of {', '.join(ENDPOINTS)} (the host comes from the command line)",
    ),
    "body": Rule(lambda value: isinstance(value, dict), "the request as an object"),
    **_BESIDE_BODY,
}

SHORT_RULES: Rules = {
    "id": _ID,
    "model": MODEL,
    "prompt": _TEXT,
    "messages": MESSAGES,
    "system": Rule(lambda value: isinstance(value, str), "a string"),
    "params": Rule(lambda value: isinstance(value, dict), "an object"),
    **_BESIDE_BODY,
    "kind": Rule(
        lambda value: isinstance(value, str) and value in get_args(JobKind), '"chat" or "reasoning"'
    ),
}


_CONNECTION = frozenset(
    {"base_url", "headers", "extra_headers", "api_key", "extra_query", "extra_body", "timeout", "proxy"}
)
_BESIDE_PARAMS = frozenset({"model", "messages", "prompt", "system"})
_CONNECTION_HINT = "hosts, headers and keys are chosen on the command line or in the configuration"

_PARAM_RULES: Rules = {
    "temperature": _NUMBER,
    "top_p": _NUMBER,
    "max_completion_tokens": _COUNT,
    "max_tokens": _COUNT,
    "n": _COUNT,
    "seed": Rule(lambda value: value is None or _is_integer(value), "an integer"),
    "stop": Rule(
        lambda value: value is None or isinstance(value, str) or _is_list_of_text(value),
        "a string or a list of strings",
    ),
}
