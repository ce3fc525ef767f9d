"""The console's pages of keys, people and limits."""

from keys.admin import limits, people, virtual_keys

__all__ = ["limits", "people", "virtual_keys"]
