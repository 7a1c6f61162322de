"""A JSON value that satisfies a schema, plainly marked as simulated where the schema lets it."""

import math
from typing import Any

_MAX_DEPTH = 6
_MAX_ITEMS = 100
_MAX_CHARACTERS = 100_000
_COMBINED = ("anyOf", "oneOf", "allOf", "enum", "const", "$ref")

_Schema = dict[str, Any]


def example_answer(schema: Any, text: str) -> Any:
    """Return a value for `schema` whose strings start with "simulated" and quote `text`.

    Known are type, properties, required, enum, const, items, local $ref, anyOf, oneOf, allOf, and the bounds
    of strings, numbers and arrays; what is unknown or makes no sense is ignored.
    """
    if not isinstance(schema, dict):
        return {"simulated": True}
    value = _example(schema, schema, text, 0)
    takes_mark = schema.get("additionalProperties", True) is True and not any(
        key in schema for key in _COMBINED
    )
    return {"simulated": True} | value if isinstance(value, dict) and takes_mark else value


def _example(schema: Any, root: _Schema, text: str, depth: int) -> Any:
    if not isinstance(schema, dict):
        return "simulated"
    schema = _resolved(schema, root)
    if "const" in schema:
        return schema["const"]
    for choices in ("enum", "anyOf", "oneOf"):
        if first := _list(schema, choices)[:1]:
            return first[0] if choices == "enum" else _example(first[0], root, text, depth)
    match _type_of(schema):
        case "object":
            return _example_object(schema, root, text, depth)
        case "array":
            usual = 0 if depth >= _MAX_DEPTH else 1
            count = min(max(_bound(schema, "minItems", usual), usual), _bound(schema, "maxItems", math.inf))
            items = range(min(int(count), _MAX_ITEMS))
            return [_example(schema.get("items", {}), root, text, depth + 1) for _ in items]
        case "integer":
            return math.ceil(_example_number(schema))
        case "number":
            return _example_number(schema)
        case "boolean":
            return True
        case "null":
            return None
        case _:
            return _example_string(schema, text)


def _resolved(schema: _Schema, root: _Schema, depth: int = 0) -> _Schema:
    """Return the schema with its reference followed and its `allOf` merged in."""
    for _ in range(_MAX_DEPTH):
        ref = schema.get("$ref")
        if not isinstance(ref, str) or not ref.startswith("#"):
            break
        target: Any = root
        for key in ref[1:].split("/")[1:]:
            target = target.get(key) if isinstance(target, dict) else None
        schema = target if isinstance(target, dict) else {}
    for given in _list(schema, "allOf"):
        if isinstance(given, dict) and depth < _MAX_DEPTH:
            part = _resolved(given, root, depth + 1)
            properties = _dict(part, "properties") | _dict(schema, "properties")
            required = [*_list(schema, "required"), *_list(part, "required")]
            schema = part | schema | {"properties": properties, "required": required}
    return schema


def _type_of(schema: _Schema) -> str:
    kind = schema.get("type")
    if isinstance(kind, list):
        kind = next((each for each in kind if each != "null"), "null")
    if kind is None and _dict(schema, "properties"):
        return "object"
    if kind is None and "items" in schema:
        return "array"
    return str(kind)


def _example_object(schema: _Schema, root: _Schema, text: str, depth: int) -> dict[str, Any]:
    properties = _dict(schema, "properties")
    required = [name for name in _list(schema, "required") if isinstance(name, str)]
    if depth >= 2 * _MAX_DEPTH:
        return {}
    # A schema may contain itself: past the depth, only what must be there.
    names = required if depth >= _MAX_DEPTH else dict.fromkeys([*properties, *required])
    return {name: _example(properties.get(name, {}), root, text, depth + 1) for name in names}


def _example_number(schema: _Schema) -> int | float:
    lowest = max(_bound(schema, "minimum", -math.inf), _bound(schema, "exclusiveMinimum", -math.inf) + 1)
    highest = min(_bound(schema, "maximum", math.inf), _bound(schema, "exclusiveMaximum", math.inf) - 1)
    value = lowest if lowest > -math.inf else min(0, highest)
    step = _bound(schema, "multipleOf", 0)
    return math.ceil(value / step) * step if step > 0 else value


def _example_string(schema: _Schema, text: str) -> str:
    value = f"simulated answer to: {text}" if text else "simulated answer"
    shortest = min(_bound(schema, "minLength", 0), _MAX_CHARACTERS)
    return value.ljust(int(shortest), ".")[: int(max(0, _bound(schema, "maxLength", _MAX_CHARACTERS)))]


def _bound(schema: _Schema, name: str, default: float) -> int | float:
    value = schema.get(name)
    return value if isinstance(value, int | float) and not isinstance(value, bool) else default


def _list(schema: _Schema, name: str) -> list[Any]:
    value = schema.get(name)
    return value if isinstance(value, list) else []


def _dict(schema: _Schema, name: str) -> _Schema:
    value = schema.get(name)
    return value if isinstance(value, dict) else {}
