"""Providers, what traffic is routed by, and the processes that serve it, in the console."""

from gateway.admin import processes, providers, routing

__all__ = ["processes", "providers", "routing"]
