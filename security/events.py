"""Writing down what the screen found."""

from typing import Final

from gateway.types import Caller
from security.engine import Verdict
from security.models import SecurityEvent

_MOST_EVENTS: Final = 50
"""Of one request: a prompt full of keys is one leak, and must not fill the table."""


def record(request_id: str, caller: Caller, verdict: Verdict) -> None:
    """Add an event for each finding, the first 50: category and place, never the text."""
    SecurityEvent.objects.bulk_create(
        SecurityEvent(
            request_id=request_id,
            key_id=caller.key_id,
            user_id=caller.user_id,
            team=caller.team,
            category=finding.category.value,
            detector=finding.detector,
            action=finding.action.value,
            severity=finding.severity.value,
            part=finding.part,
            start=finding.start,
            end=finding.end,
        )
        for finding in verdict.findings[:_MOST_EVENTS]
    )
