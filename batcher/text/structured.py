"""Answers that must be JSON of a given shape."""

from functools import lru_cache
from typing import TYPE_CHECKING

import orjson

if TYPE_CHECKING:
    from jsonschema.protocols import Validator
    from referencing.jsonschema import SchemaResource

# jsonschema takes 100 ms to import and few jobs bring a schema: hence the imports in functions.


def mismatch(text: str, schema: bytes) -> str:
    """Return how `text` misses the JSON schema, or "" if it satisfies it.

    The schema is one that `schema_fault` finds nothing wrong with.
    """
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        return f"the answer is not JSON: {error}"
    try:
        miss = next(_validator(schema).iter_errors(value), None)
    except RecursionError:
        return "the answer is nested too deep to be checked against the schema"
    if miss is None:
        return ""
    place = "/".join(str(part) for part in miss.absolute_path) or "the top"
    return f"the answer does not fit the schema at {place}: {miss.message[:200]}"


@lru_cache(maxsize=64)
def schema_fault(schema: bytes) -> str:
    """Return why answers cannot be checked against a JSON schema, or "" if they can."""
    from jsonschema import SchemaError  # noqa: PLC0415
    from referencing.exceptions import Unresolvable  # noqa: PLC0415
    from referencing.jsonschema import DRAFT202012, specification_with  # noqa: PLC0415

    try:
        parsed = orjson.loads(schema)
    except orjson.JSONDecodeError as error:
        return f"it is not JSON: {error}"
    if not isinstance(parsed, dict) or not isinstance(dialect := parsed.get("$schema", ""), str):
        return "it is not a JSON object, or its $schema is not a string"
    try:
        validator = _validator(schema)
        validator.check_schema(parsed)
        _follow_references(specification_with(dialect, default=DRAFT202012).create_resource(parsed))
        validator.is_valid(None)
    except SchemaError as error:
        return error.message[:200]
    except Unresolvable as error:
        return f"it refers to {error.ref!r}, which is not part of it"
    except RecursionError:
        return "it refers to itself without end"
    except (AttributeError, ValueError, OverflowError) as error:
        # An $id or a pattern of a kind that the library did not expect.
        return f"it cannot be understood: {error}"[:200]
    return ""


def _follow_references(schema: "SchemaResource") -> None:
    """Look up everything that a schema and its parts refer to; raises `Unresolvable`."""
    from referencing.jsonschema import EMPTY_REGISTRY  # noqa: PLC0415

    unseen = [(schema, EMPTY_REGISTRY.resolver_with_root(schema))]
    while unseen:
        part, resolver = unseen.pop()
        unseen += [(inner, resolver.in_subresource(inner)) for inner in part.subresources()]
        if isinstance(part.contents, dict):
            for keyword in ("$ref", "$dynamicRef"):
                if isinstance(reference := part.contents.get(keyword), str):
                    resolver.lookup(reference)


@lru_cache(maxsize=64)
def _validator(schema: bytes) -> "Validator":
    from jsonschema import Draft202012Validator, validators  # noqa: PLC0415
    from referencing.jsonschema import EMPTY_REGISTRY  # noqa: PLC0415

    parsed = orjson.loads(schema)
    # Without a registry of ours, a $ref to a URL would be fetched: a line must not choose a host.
    return validators.validator_for(parsed, default=Draft202012Validator)(parsed, registry=EMPTY_REGISTRY)
