"""Who sees which page, written by hand from http-api.md section 4; the policy's table is not consulted."""

import re

import pytest
from django.apps import apps
from django.test import Client
from django.urls import reverse

from keys.models import User
from tests.console.pages import CREDENTIAL, HEADER, WEBHOOK_SECRET, World, registered, signed_in, url

# A cell is the status of: the list, the add page, the page of Alice's object, its delete page.
# 404: not theirs to see. 403: a page that their role does not have.
PAGES = """
model                   ada             fin             lea             alice           charlie         vic
keys.virtualkey         200 200 200 403 200 403 200 403 200 200 200 403 200 200 200 403 200 200 404 404 200 403 200 403
keys.user               200 200 200 200 200 403 200 403 200 200 200 403 403 403 404 404 403 403 404 404 200 403 200 403
keys.team               200 200 200 200 200 403 200 403 200 403 200 403 403 403 404 404 403 403 404 404 200 403 200 403
keys.ratelimit          200 200 200 200 200 403 200 403 403 403 404 404 403 403 404 404 403 403 404 404 200 403 200 403
billing.budget          200 200 200 200 200 200 200 200 200 200 200 200 200 403 200 403 200 403 404 404 200 403 200 403
billing.alert           200 403 200 403 200 403 200 403 403 403 404 404 403 403 404 404 403 403 404 404 200 403 200 403
billing.webhook         200 200 200 200 403 403 404 404 403 403 404 404 403 403 404 404 403 403 404 404 403 403 404 404
billing.delivery        200 403 200 403 403 403 404 404 403 403 404 404 403 403 404 404 403 403 404 404 403 403 404 404
billing.ledgerentry     200 403 200 403 200 403 200 403 200 403 200 403 200 403 200 403 200 403 404 404 200 403 200 403
billing.price           200 200 200 403 200 200 200 403 403 403 404 404 403 403 404 404 403 403 404 404 200 403 200 403
billing.priceimport     200 403 200 403 200 403 200 403 403 403 404 404 403 403 404 404 403 403 404 404 200 403 200 403
gateway.provider        200 200 200 200 200 403 200 403 403 403 404 404 403 403 404 404 403 403 404 404 200 403 200 403
gateway.deployment      200 200 200 200 200 403 200 403 403 403 404 404 403 403 404 404 403 403 404 404 200 403 200 403
gateway.modelgroup      200 200 200 200 200 403 200 403 403 403 404 404 403 403 404 404 403 403 404 404 200 403 200 403
gateway.trafficweight   200 200 200 200 200 403 200 403 403 403 404 404 403 403 404 404 403 403 404 404 200 403 200 403
gateway.gatewayprocess  200 403 200 403 403 403 403 403 403 403 404 404 403 403 404 404 403 403 404 404 200 403 200 403
gateway.configversion   200 403 200 403 403 403 403 403 403 403 404 404 403 403 404 404 403 403 404 404 200 403 200 403
security.policy         200 200 200 200 200 403 200 403 403 403 404 404 403 403 404 404 403 403 404 404 200 403 200 403
security.securityevent  200 403 200 403 403 403 404 404 403 403 404 404 403 403 404 404 403 403 404 404 403 403 404 404
security.auditentry     200 403 200 403 403 403 404 404 403 403 404 404 403 403 404 404 403 403 404 404 403 403 404 404
memory.session          200 403 200 200 403 403 404 404 403 403 404 404 200 403 200 200 200 403 404 404 403 403 404 404
memory.turn             200 403 200 200 403 403 404 404 403 403 404 404 200 403 200 200 200 403 404 404 403 403 404 404
rag.collection          200 200 200 200 403 403 404 404 403 403 404 404 200 200 200 200 200 200 404 404 403 403 404 404
rag.document            200 200 200 200 403 403 404 404 403 403 404 404 200 200 200 200 200 200 404 404 403 403 404 404
"""
# Whether the page of the object has a button that saves it.
SAVES = {
    "ada": {"keys.virtualkey", "keys.user", "keys.team", "keys.ratelimit", "billing.budget", "billing.price",
            "billing.webhook", "gateway.provider",
            "gateway.deployment", "gateway.modelgroup", "gateway.trafficweight", "security.policy"},
    "fin": {"billing.budget", "billing.price"},
    "lea": {"keys.virtualkey", "keys.user", "billing.budget"},
    "alice": {"keys.virtualkey"},
    "charlie": set(),
    "vic": set(),
}  # fmt: skip
# Plumbing that has no page: a document's passages, a group's members and fallbacks (on its page), wrong passwords.
WITHOUT_PAGE = {
    "rag.passage",
    "gateway.groupmember",
    "gateway.groupfallback",
    "keys.loginfailure",
    "gateway.routingstatistics",
    "gateway.processload",
}


def _cells() -> list[tuple[str, str, list[int]]]:
    head, *lines = PAGES.strip().splitlines()
    visitors = head.split()[1:]
    cells = []
    for line in lines:
        label, *statuses = line.split()
        for i, visitor in enumerate(visitors):
            cells.append((label, visitor, [int(status) for status in statuses[4 * i : 4 * i + 4]]))
    return cells


CELLS = _cells()


def test_every_model_has_its_line():
    ours = {"keys", "gateway", "billing", "security", "memory", "rag", "grpc_module"}
    models = {model._meta.label_lower for model in apps.get_models() if model._meta.app_label in ours}
    assert {label for label, _, _ in CELLS} == models - WITHOUT_PAGE
    assert {model._meta.label_lower for model in registered()} == models - WITHOUT_PAGE


@pytest.mark.parametrize("visitor", ["ada", "fin", "lea", "alice", "charlie", "vic"])
def test_every_page_for_every_role(world: World, visitor: str):
    client = signed_in(User.objects.get(username=visitor))
    wanted, found = {}, {}
    for label, who, statuses in CELLS:
        if who != visitor:
            continue
        row = world[label]
        pages = [client.get(url("changelist", label)), client.get(url("add", label))]
        pages += [client.get(url("change", row)), client.get(url("delete", row))]
        wanted[label], found[label] = statuses, [page.status_code for page in pages]
        for page in pages:
            body = page.content.decode()
            assert CREDENTIAL not in body
            assert HEADER not in body
            assert WEBHOOK_SECRET not in body
        if statuses[2] == 200:
            assert ('name="_save"' in pages[2].content.decode()) == (label in SAVES[visitor]), label
    assert found == wanted


@pytest.mark.parametrize("visitor", ["fin", "lea", "alice", "charlie", "vic"])
def test_what_has_no_button_cannot_be_posted_either(world: World, visitor: str):
    client = signed_in(User.objects.get(username=visitor))
    for label, who, statuses in CELLS:
        if who != visitor or label in SAVES[visitor]:
            continue
        response = client.post(url("change", world[label]), {"name": "changed", "_save": "Save"})
        assert response.status_code == (403 if statuses[2] != 404 else 404), label
        if statuses[1] == 403:
            assert client.post(url("add", label), {"name": "new", "_save": "Save"}).status_code == 403, label
        if statuses[3] != 200:
            assert client.post(url("delete", world[label]), {"post": "yes"}).status_code in (403, 404), label


@pytest.mark.parametrize("visitor", ["ada", "fin", "lea", "alice", "vic"])
def test_the_home_page_shows_each_role_its_own_part(world: World, visitor: str):
    client = signed_in(User.objects.get(username=visitor))
    page = client.get(reverse("admin:index")).content.decode()
    for label, who, statuses in CELLS:
        if who == visitor:
            assert (f'href="{url("changelist", label)}"' in page) == (statuses[0] == 200), label


def test_strangers_are_sent_to_the_login(world: World):
    for label in (model._meta.label_lower for model in registered()):
        response = Client().get(url("changelist", label))
        assert response.status_code == 302
        assert response["Location"].startswith(reverse("admin:login"))


def test_lists_show_what_is_theirs(world: World):
    def names(visitor: str) -> set[str]:
        page = signed_in(User.objects.get(username=visitor)).get(url("changelist", "keys.virtualkey"))
        return {key.name for key in page.context["cl"].result_list}

    assert names("alice") == {"alice's key"}
    assert names("lea") == {"alice's key", "bob's key", "red's key"}
    assert names("vic") == {"admin key", "alice's key", "bob's key", "charlie's key", "red's key", "lone key"}


def test_finance_reads_a_provider_s_name_and_no_more(world: World):
    fin = signed_in(User.objects.get(username="fin"))
    for page in (fin.get(url("changelist", "gateway.provider")), fin.get(url("change", world["gateway.provider"]))):
        body = page.content.decode()
        assert "upstream" in body
        assert "127.0.0.1:9" not in body
        assert "set)" not in body
    # Nor by asking whether it begins with …
    probe = fin.get(url("changelist", "gateway.provider"), {"base_url__startswith": "http://127"})
    assert probe.status_code in (302, 400)


@pytest.mark.parametrize(
    ("label", "lookup"),
    [
        ("keys.user", "password__startswith"),
        ("keys.virtualkey", "digest__startswith"),
        ("keys.virtualkey", "user__password__startswith"),
        ("gateway.provider", "credentials__startswith"),
        ("gateway.deployment", "provider__credentials__startswith"),
    ],
)
def test_hashes_and_credentials_are_not_to_be_guessed_by_filters(ada, label: str, lookup: str):
    assert ada.get(url("changelist", label), {lookup: "a"}).status_code == 400


def test_a_member_is_not_offered_other_people(world: World, alice, lea):
    autocomplete = reverse("admin:autocomplete")
    asked = {"app_label": "keys", "model_name": "virtualkey", "field_name": "user"}
    assert alice.get(autocomplete, asked).status_code == 404
    people = {row["text"] for row in lea.get(autocomplete, asked).json()["results"]}
    assert people == {"lea", "alice", "bob"}


def test_no_page_asks_another_host(world: World, ada):
    pages = [reverse("admin:index"), reverse("admin:login"), url("changelist", "keys.virtualkey")]
    pages += [url("add", "keys.virtualkey"), url("change", world["gateway.provider"])]
    for page in pages:
        body = ada.get(page, follow=True).content.decode()
        assert not re.findall(r'(?:src|href|action)="(?:https?:)?//[^"]+"', body), page
