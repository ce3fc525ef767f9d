"""What goes wrong with requests is told to people: each of it once, and never on a request's time."""

from typing import Any

import pytest

from billing.models import Alert, Delivery
from tests.support.upstream import refuses, says
from tests.support.waiting import eventually
from tests.support.world import make_budget


def alerts(kind: str) -> list[Alert]:
    found: list[Alert] = eventually(lambda: list(Alert.objects.filter(kind=kind)))
    return found


@pytest.fixture(autouse=True)
def _mail(settings: Any) -> None:
    settings.ALERT_EMAILS = ["ops@example.com"]


def test_a_settlement_above_its_hold(gateway, model, alice, upstream, stream):
    budget = make_budget("key", alice.id, dollars="1")
    usage = {"prompt_tokens": 100_000, "completion_tokens": 10}
    upstream.will(says(usage=usage), says(usage=usage))
    answers = [gateway.chat(alice, stream=stream, max_tokens=10) for _ in range(2)]
    (alert,) = alerts("overrun")
    settlement = gateway.settlement(answers[0].id)
    assert (alert.subject, alert.detail["request_id"]) == ("gpt-test", answers[0].id)
    assert alert.detail["cost_usd"] == f"{settlement.cost_usd:f}"
    assert Delivery.objects.count() == 1
    gateway.wait_until_quiet()
    assert gateway.used(budget)[0] == 2 * (settlement.cost_usd or 0), "it counts at once"


@pytest.mark.parametrize("status", [401, 403])
def test_credentials_that_a_provider_refuses(gateway, model, alice, upstream, stream, status):
    upstream.will(*(refuses(status) for _ in range(5)))
    for _ in range(5):
        assert gateway.chat(alice, stream=stream).status in (502, 503)
    (alert,) = alerts("upstream_credentials")
    assert (alert.subject, alert.detail) == ("gpt-test", {"provider": "upstream"})
