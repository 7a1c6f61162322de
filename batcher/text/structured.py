"""Answers that must be JSON of a given shape."""

from functools import lru_cache
from typing import TYPE_CHECKING

import orjson

if TYPE_CHECKING:
    from jsonschema.protocols import Validator


def mismatch(text: str, schema: bytes) -> str:
    """Return how `text` misses the JSON schema, or "" if it satisfies it."""
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        return f"the answer is not JSON: {error}"
    for miss in _validator(schema).iter_errors(value):
        place = "/".join(str(part) for part in miss.absolute_path) or "the top"
        return f"the answer does not fit the schema at {place}: {miss.message[:200]}"
    return ""


def schema_fault(schema: bytes) -> str:
    """Return what is wrong with a JSON schema, or "" if it is a valid one."""
    from jsonschema import SchemaError  # noqa: PLC0415 - see _validator

    try:
        _validator(schema).check_schema(orjson.loads(schema))
    except SchemaError as error:
        return error.message[:200]
    return ""


@lru_cache(maxsize=64)
def _validator(schema: bytes) -> "Validator":
    from jsonschema import validators  # noqa: PLC0415 - costs 100 ms, and few jobs bring a schema

    parsed = orjson.loads(schema)
    return validators.validator_for(parsed)(parsed)
