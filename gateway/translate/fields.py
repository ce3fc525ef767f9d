"""Fields of a client's body whose types no door has checked. Each raises `InvalidRequest`, whose `param` names it."""

from typing import Any

from gateway.errors import InvalidRequest
from gateway.types import Json


def number(body: Json, name: str) -> float | None:
    value = body.get(name)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise InvalidRequest(f"'{name}' is a number.", param=name)
    return value


def integer(body: Json, name: str) -> int | None:
    value = number(body, name)
    if value is not None and not isinstance(value, int):
        raise InvalidRequest(f"'{name}' is an integer.", param=name)
    return value


def boolean(body: Json, name: str) -> bool | None:
    value = body.get(name)
    if value is not None and not isinstance(value, bool):
        raise InvalidRequest(f"'{name}' is true or false.", param=name)
    return value


def string(body: Json, name: str) -> str | None:
    value = body.get(name)
    if value is not None and not isinstance(value, str):
        raise InvalidRequest(f"'{name}' is a string.", param=name)
    return value


def object_(body: Json, name: str) -> Json:
    """Empty where there is none."""
    value = body.get(name)
    if value is not None and not isinstance(value, dict):
        raise InvalidRequest(f"'{name}' is an object.", param=name)
    return value or {}


def list_(body: Json, name: str) -> list[Any]:
    """Empty where there is none."""
    value = body.get(name)
    if value is not None and not isinstance(value, list):
        raise InvalidRequest(f"'{name}' is a list.", param=name)
    return value or []
