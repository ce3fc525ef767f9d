"""What detectors and policies share: categories, actions, hits. A leaf: imports nothing of ours, never the ORM."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Final

import msgspec


class Category(StrEnum):
    """What is found, by the contract's names (http-api.md section 4)."""

    SECRET = "secret"
    CUSTOM = "custom"


class Action(StrEnum):
    """What a policy does about a category, weakest first; `off` does not even look."""

    OFF = "off"
    FLAG = "flag"
    SANITIZE = "sanitize"
    BLOCK = "block"


class Severity(StrEnum):
    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"


class Hit(msgspec.Struct, frozen=True):
    """Where a detector found something: characters `start` (included) to `end` (excluded) of the text it was given."""

    start: int
    end: int
    severity: Severity


class ScreenPolicy(msgspec.Struct, frozen=True):
    """A policy as the data plane reads it."""

    name: str
    actions: Mapping[Category, Action]
    """Every category has one."""
    blocked_terms: tuple[str, ...] = ()
    """Folded by `detectors.terms.fold`."""


BALANCED: Final[Mapping[Category, Action]] = {Category.SECRET: Action.SANITIZE, Category.CUSTOM: Action.BLOCK}
"""The contract's defaults: what applies where a policy says nothing, and where there is no policy."""
