"""JSON schemas as Anthropic's structured outputs and strict tools take them: a part of JSON Schema.

What they take is what anthropic 2.12 `lib/_parse/_transform.py` lets through, and we do as it does: objects are closed,
`oneOf` becomes `anyOf`, and a constraint that is not taken (`minimum`, `pattern`, …) is told in the description, so
that the model may keep it. Unlike the SDK we give up where closing an object would lose what it is for.
"""

from typing import Any, Final

from gateway.types import Json

_TYPES: Final = frozenset({"object", "array", "string", "integer", "number", "boolean", "null"})
_FORMATS: Final = frozenset(
    {"date-time", "time", "date", "duration", "email", "hostname", "uri", "ipv4", "ipv6", "uuid"}
)  # fmt: skip
_DEEPEST: Final = 100  # levels; no schema that a grammar could be made of is deeper
_ANNOTATIONS: Final = frozenset({"$schema", "$id", "$comment"})


class Inexpressible(Exception):
    """The schema means something that Anthropic's cannot."""


def closed(schema: Json) -> Json:
    """The schema as Anthropic takes it. Raises `Inexpressible`."""
    return _closed(schema, 0)


def _closed(schema: Any, depth: int) -> Json:
    if not isinstance(schema, dict) or depth > _DEEPEST:
        raise Inexpressible
    rest = {name: value for name, value in schema.items() if name not in _ANNOTATIONS}
    made: Json = {}
    for name in ("$defs", "definitions"):
        if isinstance(definitions := rest.pop(name, None), dict):
            made[name] = {key: _closed(each, depth + 1) for key, each in definitions.items()}
    if "$ref" in rest:
        return {**made, "$ref": rest["$ref"]}
    _kind(rest, made, depth)
    for name in ("description", "title"):
        if isinstance(rest.get(name), str):
            made[name] = rest.pop(name)
    if rest:
        told = "{" + ", ".join(f"{name}: {value}" for name, value in rest.items()) + "}"
        made["description"] = f"{made['description']}\n\n{told}" if "description" in made else told
    return made


def _kind(rest: Json, made: Json, depth: int) -> None:
    """Move what says which values there are from `rest` to `made`."""
    type_ = rest.pop("type", None)
    literals: Json = {name: rest[name] for name in ("enum", "const") if name in rest and _is_plain(rest[name])}
    variants = next((name for name in ("anyOf", "oneOf", "allOf") if isinstance(rest.get(name), list)), None)
    if literals:
        made.update(literals)
        for name in literals:
            del rest[name]
    elif variants is not None:
        each = [_closed(variant, depth + 1) for variant in rest.pop(variants)]
        made["allOf" if variants == "allOf" else "anyOf"] = each
    elif isinstance(type_, list):
        made["anyOf"] = [_closed({**_for_type(rest, one), "type": one}, depth + 1) for one in type_]
        for name in _OF_TYPE:
            rest.pop(name, None)
    elif isinstance(type_, str) and type_ in _TYPES:
        made["type"] = type_
        _details(type_, rest, made, depth)
    else:
        raise Inexpressible


_OF_TYPE: Final = {
    "properties": "object", "required": "object", "additionalProperties": "object",
    "items": "array", "minItems": "array", "format": "string",
}  # fmt: skip


def _for_type(rest: Json, type_: Any) -> Json:
    """What of a schema for several types is about this one."""
    return {name: rest[name] for name, of in _OF_TYPE.items() if of == type_ and name in rest}


def _details(type_: str, rest: Json, made: Json, depth: int) -> None:
    if type_ == "object":
        if rest.pop("additionalProperties", False) not in (False, True) or not isinstance(
            properties := rest.pop("properties", None), dict
        ):
            raise Inexpressible  # a map: closed, it would always be empty
        made["properties"] = {name: _closed(each, depth + 1) for name, each in properties.items()}
        made["additionalProperties"] = False
        if isinstance(required := rest.pop("required", None), list):
            made["required"] = required
    elif type_ == "array":
        if "items" in rest:
            made["items"] = _closed(rest.pop("items"), depth + 1)
        if rest.get("minItems") in (0, 1):
            made["minItems"] = rest.pop("minItems")
    elif type_ == "string" and isinstance(rest.get("format"), str) and rest["format"] in _FORMATS:
        made["format"] = rest.pop("format")


def _is_plain(value: Any) -> bool:
    """Whether an enum or const is of strings, numbers, booleans and null only."""
    values = value if isinstance(value, list) else [value]
    return bool(values) and all(each is None or isinstance(each, str | int | float) for each in values)
