"""The console's pages of keys and people."""

from keys.admin import people, virtual_keys

__all__ = ["people", "virtual_keys"]
