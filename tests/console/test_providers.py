"""Providers in the console: credentials go in and never come out; what is defined elsewhere is only read."""

import pytest

from gateway import vault
from gateway.models import Deployment, Provider
from security.models import AuditEntry
from tests.console.pages import CREDENTIAL, HEADER, World, last_entry, submit, url
from tests.console.test_keys import errors

STORED = {"api_key": CREDENTIAL, "headers": {"x-project": HEADER}}


def credentials(world: World) -> dict:
    return vault.open_sealed(Provider.objects.get(pk=world["gateway.provider"].pk).credentials)


def change(client, world: World, **fields):
    return submit(client, url("change", world["gateway.provider"]), **fields)


def test_credentials_are_sealed_and_never_shown(ada, world: World):
    secret = {"api_key": "sk-new-secret", "headers": "X-Org: org-secret\n\nx-b: c: d"}
    response = submit(
        ada, url("add", "gateway.provider"), slug="other", kind="openai", base_url="http://localhost/v1", **secret
    )
    assert response.status_code == 302, errors(response)

    provider = Provider.objects.get(slug="other")
    opened = {"api_key": "sk-new-secret", "headers": {"x-org": "org-secret", "x-b": "c: d"}}
    assert vault.open_sealed(provider.credentials) == opened
    page = ada.get(url("change", provider)).content.decode()
    assert "(set)" in page
    for shown in (page, ada.get(url("changelist", "gateway.provider")).content.decode()):
        for part in ("sk-new-secret", "org-secret", provider.credentials):
            assert part not in shown
    told = last_entry(object_type="gateway.provider").after
    assert told["credentials"] == "(set)"
    assert "secret" not in str(told)


@pytest.mark.parametrize(
    ("kind", "base_url"),
    [("anthropic", "http://localhost/v1"), ("ollama", "http://localhost/v1/"), ("ollama", "http://localhost/api")],
)
def test_an_address_that_would_be_doubled_is_refused(ada, world: World, kind, base_url):
    response = submit(ada, url("add", "gateway.provider"), slug="other", kind=kind, base_url=base_url)
    assert response.status_code == 200
    assert "at its end" in errors(response)
    assert not Provider.objects.filter(slug="other").exists()


def test_a_form_with_an_error_gives_them_back_neither(ada, world: World):
    sent = {"slug": "No Slug", "api_key": "sk-typed-once", "headers": "x-org: typed-once"}
    response = submit(ada, url("add", "gateway.provider"), kind="openai", **sent)
    assert response.status_code == 200
    assert "sk-typed-once" not in response.content.decode()
    bad = submit(ada, url("add", "gateway.provider"), kind="openai", slug="x", headers="no colon but typed-once")
    assert "Each line is" in errors(bad)
    assert "typed-once" not in bad.content.decode()


def test_left_empty_they_stay(ada, world: World):
    response = change(ada, world, first_byte_timeout="30")
    assert response.status_code == 302, errors(response)
    assert credentials(world) == STORED


def test_one_of_them_is_replaced(ada, world: World):
    assert change(ada, world, api_key="sk-rotated").status_code == 302
    assert credentials(world) == STORED | {"api_key": "sk-rotated"}
    entry = AuditEntry.objects.get(object_type="gateway.provider")
    assert (entry.before, entry.after) == ({"credentials": "(set)"}, {"credentials": "(replaced)"})


def test_they_are_forgotten_on_request(ada, world: World):
    assert change(ada, world, forget="on").status_code == 302
    assert Provider.objects.get(slug="upstream").credentials == ""


@pytest.mark.parametrize(
    ("fields", "moved"),
    [
        ({"base_url": "http://127.0.0.1:9/v2"}, False),
        ({"base_url": "http://127.0.0.1:10/v1"}, True),
        ({"base_url": "http://other.example:9/v1"}, True),
        ({"base_url": "https://127.0.0.1:9/v1"}, True),
        ({"base_url": ""}, True),  # the vendor's own
    ],
)
def test_another_host_wants_them_again(ada, world: World, fields: dict, moved: bool):
    response = change(ada, world, **fields)
    assert response.status_code == (200 if moved else 302)
    if not moved:
        assert credentials(world) == STORED
        return
    assert set(response.context["adminform"].form.errors) == {"api_key", "headers"}
    assert Provider.objects.get(slug="upstream").base_url == "http://127.0.0.1:9/v1"

    half = change(ada, world, **fields, api_key="sk-for-there")
    assert set(half.context["adminform"].form.errors) == {"headers"}
    assert change(ada, world, **fields, api_key="sk-for-there", headers="x-project: there").status_code == 302
    assert credentials(world) == {"api_key": "sk-for-there", "headers": {"x-project": "there"}}


def test_another_host_without_the_old_ones(ada, world: World):
    moved = {"base_url": "https://other.example/v1", "forget": "on", "api_key": "sk-for-there"}
    assert change(ada, world, **moved).status_code == 302
    assert credentials(world) == {"api_key": "sk-for-there", "headers": {}}


@pytest.mark.parametrize("address", ["http://169.254.169.254/v1", "ftp://a", "http://u:p@host/v1", "http://h/v1?key=1"])
def test_addresses_that_are_never_called(ada, world: World, address: str):
    response = change(ada, world, base_url=address, api_key="x", headers="a: b")
    assert response.status_code == 200
    assert Provider.objects.get(slug="upstream").base_url == "http://127.0.0.1:9/v1"


def test_credentials_that_no_key_opens(ada, world: World):
    Provider.objects.filter(slug="upstream").update(credentials="gibberish")
    assert change(ada, world, price_book="openai").status_code == 302
    assert Provider.objects.get(slug="upstream").credentials == "gibberish", "not ours to lose"
    assert change(ada, world, api_key="sk-again").status_code == 302
    assert credentials(world)["api_key"] == "sk-again"


def test_nor_do_they_go_to_another_host(ada, world: World):
    """They may open again, with an old key that is given back."""
    Provider.objects.filter(slug="upstream").update(credentials="gibberish")
    response = change(ada, world, base_url="https://other.example/v1")
    assert set(response.context["adminform"].form.errors) == {"api_key", "headers"}
    assert Provider.objects.get(slug="upstream").base_url == "http://127.0.0.1:9/v1"


def test_headers_that_frame_a_request_are_not_taken(ada, world: World):
    response = change(ada, world, headers="Content-Length: 5")
    assert "The gateway sets these itself" in errors(response)
    assert credentials(world) == STORED


# ── what is defined elsewhere ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "label",
    ["keys.virtualkey", "keys.team", "gateway.provider", "gateway.deployment", "gateway.modelgroup",
     "gateway.trafficweight", "billing.budget", "security.policy"],
)  # fmt: skip
def test_managed_rows_are_read_and_the_page_says_why(ada, world: World, label: str):
    row = world[label]
    type(row).objects.filter(pk=row.pk).update(managed_by="environment")
    page = ada.get(url("change", row)).content.decode()
    assert "This is defined by the environment" in page
    assert 'name="_save"' not in page

    assert ada.post(url("change", row), {"name": "changed", "slug": "changed"}).status_code == 403
    assert ada.post(url("delete", row), {"post": "yes"}).status_code == 403
    for action in ("disable", "delete_selected", "revoke_selected"):
        chosen = {"_selected_action": [row.pk], "post": "yes", "confirmed": "yes", "reason": "x"}
        ada.post(url("changelist", label), {"action": action, **chosen})
    if label == "keys.virtualkey":
        assert ada.post(url("revoke", row), {"reason": "x"}).status_code == 403
        assert ada.post(url("rotate", row), {"grace_seconds": "0"}).status_code == 403
    stored = type(row).objects.get(pk=row.pk)
    assert {f.name: getattr(stored, f.name) for f in row._meta.fields if f.name != "managed_by"} == {
        f.name: getattr(row, f.name) for f in row._meta.fields if f.name != "managed_by"
    }
    assert not AuditEntry.objects.filter(via="console").exists()


def test_enabling_leaves_managed_rows_alone(ada, world: World):
    managed = Deployment.objects.create(
        name="env", provider=world["gateway.provider"], upstream_model="m", managed_by="environment"
    )
    chosen = {"action": "disable", "_selected_action": [managed.pk, world["gateway.deployment"].pk]}
    page = ada.post(url("changelist", "gateway.deployment"), chosen, follow=True).content.decode()
    assert "1 left as they are" in page
    assert Deployment.objects.get(name="env").enabled
    assert not Deployment.objects.get(name="gpt-test").enabled
