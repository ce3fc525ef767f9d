"""Alerts: raised once each, shown in the console, sent to webhooks and by e-mail.

`raise_soon` is for the data plane; `recording.record` for jobs; `thresholds` watches budgets; `delivery` sends, from
the job process alone. An alert that nobody acknowledged stays on the console's home page.
"""

from billing.alerts.raising import queue, raise_soon

__all__ = ["queue", "raise_soon"]
