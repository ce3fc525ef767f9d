"""Nobody makes more of themselves: by a field, a list's action, a header, a name that is another's.

`tests/api/test_matrix.py` has who may call what; here every writable field and every action of the console is tried by
everyone who may not, and what counts is what the database holds afterwards.
"""

import re
from datetime import timedelta
from typing import Any

import pytest
from django.contrib import admin
from django.test import Client
from django.urls import URLPattern, reverse
from django.utils import timezone
from rest_framework.serializers import Serializer

from ailb_project.urls import urlpatterns
from billing.api.serializers import BudgetPatch, NewBudget
from billing.models import Budget, Price
from gateway.models import Deployment, GroupMember, ModelGroup, Provider
from keys.api.base import ApiView
from keys.api.serializers import NewKey, NewTeam, NewUser, Rotation, TeamPatch, UserPatch
from keys.models import Team, User, VirtualKey
from security.models import AuditEntry, Policy
from tests.api.doors import Cast
from tests.console.pages import World, signed_in, url

# What somebody would like to write: the most that each field can be.
GREED: dict[str, Any] = {
    "name": "mine now", "user_id": "ada", "team": "blue", "role": "admin", "display_name": "Root",
    "email": "root@example.com", "is_active": False, "cost_centre": "0", "monthly_quota_dollars": 1_000_000,
    "monthly_quota_tokens": 10**12, "rate_limit_rpm": 10**9, "rate_limit_tpm": 10**12, "max_parallel": 10**6,
    "allowed_models": None, "expires_at": None, "metadata": {}, "tags": ["greed"], "grace_seconds": 60,
    "rotation_id": "mine", "tz": "Asia/Tokyo", "limit_dollars": 1_000_000, "limit_tokens": 10**12, "key_id": "{key}",
    "organisation": True, "period": "total", "monthly_limit_dollars": 1_000_000, "monthly_limit_tokens": 10**12,
    "starts_on": "2020-01-01", "days": 1, "repeats": True, "mode": "grace", "grace_percent": 100,
    "alert_thresholds": [], "max_wait_ms": 600_000, "queue_weight": 100,
}  # fmt: skip
# Columns that no body has: to be refused by name, not dropped.
NOBODYS = (
    "id", "digest", "previous_digest", "previous_until", "hint", "status", "revoked_at", "managed_by", "created_at",
    "last_used", "password", "must_change_password", "is_superuser", "is_staff", "last_login", "username", "spent",
    "scope", "owner", "key", "secret", "rotation", "actor", "via", "own_only",
)  # fmt: skip
LIMITS = ("rate_limit_rpm", "rate_limit_tpm", "max_parallel")


@pytest.fixture
def cast(cast: Cast) -> Cast:
    """With limits on everything of Alice's, so that a raised or lifted one shows."""
    tight = dict.fromkeys(LIMITS, 10)
    VirtualKey.objects.filter(user__username="alice").update(allowed_models=["small"], **tight)
    User.objects.filter(username="alice").update(**tight)
    Team.objects.filter(name="red").update(**tight)
    return cast


def address(route: str, cast: Cast) -> str:
    names = {
        "<str:key_id>": cast.key.pk, "<path:user_id>": "alice", "<path:name>": "red",
        "<int:budget_id>": str(cast.budgets["alice"].pk),
    }  # fmt: skip
    for name, value in names.items():
        route = route.replace(name, value)
    return f"/{re.sub('<.*?>', 'none', re.sub('<int:.*?>', '0', route))}"


def routes() -> list[tuple[str, Any]]:
    patterns = [pattern for pattern in urlpatterns if isinstance(pattern, URLPattern)]
    views = [(str(pattern.pattern), getattr(pattern.callback, "cls", None)) for pattern in patterns]
    return [(route, view) for route, view in views if isinstance(view, type) and issubclass(view, ApiView)]


def bodies() -> dict[tuple[str, str], type[Serializer[Any]]]:
    """Every route that takes a body, and the serializer that its OpenAPI description names."""
    found = {}
    for route, view in routes():
        for method in ("POST", "PATCH", "PUT"):
            if (handler := getattr(view, method.lower(), None)) is not None:
                description = handler.kwargs["schema"]()
                description.view = view(request=None, args=(), kwargs={}, action=None)
                body = description.get_request_serializer()
                if isinstance(body, type):
                    found[method, route] = body
    return found


BODIES = bodies()
OWNERS = ("<str:key_id>", "<path:user_id>", "<path:name>", "<int:budget_id>")
OF_ALICE = [(method, route) for method, route in BODIES if "<" not in route or any(name in route for name in OWNERS)]


def test_the_routes_that_give_power_are_among_them():
    assert {NewKey, Rotation, NewUser, UserPatch, NewTeam, TeamPatch, NewBudget, BudgetPatch} <= set(BODIES.values())
    theirs = {NewKey, Rotation, NewUser, UserPatch, NewTeam, TeamPatch, NewBudget, BudgetPatch}
    assert {name for body in theirs for name in body().fields} == set(GREED)


# ── by a field ──────────────────────────────────────────────────────────────────────────────────────────────────────


def holdings(who: str) -> dict[str, Any]:
    """What must not become more, or other, by their own doing."""
    user = User.objects.get(username=who)
    keys = list(VirtualKey.objects.exclude(role="member").order_by("pk").values_list("pk", "role"))
    return {
        "roles": dict(User.objects.values_list("username", "role")),
        "teams": dict(User.objects.values_list("username", "team__name")),
        "active": dict(User.objects.values_list("username", "is_active")),
        "powerful keys": keys,
        "their limits": [getattr(user, name) for name in LIMITS],
        "their keys' limits": list(
            VirtualKey.objects.filter(user=user).values_list(*LIMITS, "allowed_models", "user__username", "team__name")[
                :1
            ]
        ),
        "teams' limits": list(Team.objects.order_by("name").values_list("name", *LIMITS)),
        "budgets": list(Budget.objects.order_by("pk").values_list("scope", "owner", "limit_dollars", "limit_tokens")),
        "managed": list(VirtualKey.objects.exclude(managed_by="").values_list("pk")),
    }


def tries(cast: Cast) -> list[tuple[str, str, dict[str, Any]]]:
    """Each field of each body, alone and among what the body needs."""
    needed = {NewKey: {"name": "n"}, NewUser: {"user_id": "dora"}, NewTeam: {"name": "green"}}
    owners = {NewBudget: {"user_id": "alice", "limit_dollars": 1_000_000}}
    found = []
    for (method, route), body in BODIES.items():
        base = (needed.get(body) or owners.get(body) or {}) if method == "POST" else {}
        greedy = {name: cast.key.pk if value == "{key}" else value for name, value in GREED.items()}
        for name in body().fields:
            found.append((method, address(route, cast), {**base, name: greedy.get(name, "x")}))
            if body is NewBudget and name in ("key_id", "team", "organisation"):
                found.append((method, address(route, cast), {name: greedy[name], "limit_dollars": 10**6}))
    return found


@pytest.mark.parametrize("who", ["alice", "alice's key", "vic"])
def test_no_field_makes_a_member_or_viewer_more_than_they_are(cast: Cast, who: str):
    person = "vic" if who == "vic" else "alice"
    before = holdings(person)
    keys = set(VirtualKey.objects.values_list("pk", flat=True))
    for method, path, body in tries(cast):
        if path.endswith("/rotate") and who == "alice's key":
            continue  # it would end itself; of the others' rotations Alice's own session tells
        answer = cast[who].send(method, path, body)
        assert answer.status in (200, 201, 400, 403, 404), (method, path, body, answer.body)
        for made in VirtualKey.objects.exclude(pk__in=keys):
            told = (made.user and made.user.username, made.role, made.allowed_models, made.rate_limit_rpm)
            assert told == ("alice", "member", ["small"], 10), (body, told)
            # As tight as the one she has; that there are two is a matter for her user's budget.
            assert Budget.objects.get(scope="key", owner=made.pk).limit_dollars == 50
            Budget.objects.filter(scope="key", owner=made.pk).delete()
            made.delete()
        assert holdings(person) == before, (method, path, body, answer.status)


def test_no_field_makes_a_team_lead_more_than_one_team_lets_them(cast: Cast):
    """They may write their team's keys and limits of its people; never a role, another team, or more money."""
    kept = ("roles", "teams", "active", "powerful keys", "teams' limits", "managed")
    before = {name: holdings("lea")[name] for name in kept}
    ceiling = 100  # the team's own monthly budget
    for method, path, body in tries(cast):
        answer = cast["lea"].send(method, path, body)
        assert answer.status in (200, 201, 400, 403, 404, 409), (method, path, body, answer.body)
        User.objects.filter(username="dora", role="member", team__name="red").delete()
        now = holdings("lea")
        assert {name: now[name] for name in kept} == before, (method, path, body, answer.status)
        monthly = Budget.objects.filter(period="monthly").exclude(scope="organisation")
        assert all(budget.limit_dollars is None or budget.limit_dollars <= ceiling for budget in monthly), (
            method,
            path,
            body,
        )
        assert not VirtualKey.objects.filter(team__name="blue", name="n").exists()
    assert Budget.objects.get(scope="organisation").limit_dollars == 1000


def test_no_field_gives_finance_anything_but_budgets(cast: Cast):
    kept = [name for name in holdings("fin") if name != "budgets"]
    before = {name: holdings("fin")[name] for name in kept}
    keys = VirtualKey.objects.count()
    for method, path, body in tries(cast):
        answer = cast["fin"].send(method, path, body)
        assert answer.status in (200, 201, 400, 403, 404), (method, path, body, answer.body)
        User.objects.filter(username__in=["dora"]).delete()
        assert {name: holdings("fin")[name] for name in kept} == before, (method, path, body)
    assert VirtualKey.objects.count() == keys


def test_whose_only_key_has_ended_makes_no_freer_one(cast: Cast):
    """By their own revocation, or by the clock: what was given for a time was given for a time."""
    cast["alice"].delete(f"/api/keys/{cast.key.pk}")
    made = cast["alice"].post("/api/keys", name="free at last?").body["key_data"]
    assert (made["allowed_models"], made["rate_limit_rpm"], made["monthly_quota_dollars"]) == (["small"], 10, 50)

    past = timezone.now() - timedelta(days=1)
    VirtualKey.objects.filter(user__username="alice").update(expires_at=past)
    answer = cast["alice"].post("/api/keys", name="for ever?")
    assert (answer.status, list(answer.body["errors"])) == (400, ["expires_at"])
    assert not [key for key in VirtualKey.objects.filter(user__username="alice") if key.status == "active"]


def test_who_never_had_a_key_makes_one_within_the_policy(cast: Cast):
    VirtualKey.objects.filter(user__username="bob").delete()
    assert cast["bob"].post("/api/keys", name="first").status == 201


@pytest.mark.parametrize(("method", "route"), OF_ALICE)
def test_what_no_body_has_is_refused_by_name_even_from_an_admin(cast: Cast, method: str, route: str):
    path = address(route, cast)
    for name in NOBODYS:
        answer = cast["ada"].send(method, path, {name: "x"})
        assert answer.status == 400, (path, name)
        if name not in BODIES[method, route]().fields:
            assert answer.body["errors"][name] == ["Unknown field."], (path, name)


# ── by another's name ───────────────────────────────────────────────────────────────────────────────────────────────


def test_others_objects_are_told_from_missing_ones_by_nothing(cast: Cast):
    """Same status, same words: a guess at an id learns nothing."""
    there = {"<str:key_id>": cast.key.pk, "<int:budget_id>": str(cast.budgets["alice"].pk),
             "<path:user_id>": "alice", "<path:name>": "red"}  # fmt: skip
    missing = {"<str:key_id>": "key_00000000000000000000", "<int:budget_id>": "999999",
               "<path:user_id>": "nobody", "<path:name>": "none"}  # fmt: skip
    for route, view in routes():
        name = next((name for name in there if name in route), None)
        if name is None:
            continue
        for who in ("charlie", "charlie's key", "lex", "lone key"):
            for method in ("GET", "PATCH", "DELETE", "POST"):
                if not hasattr(view, method.lower()):
                    continue
                sent = {"name": "n"} if method != "GET" else None
                theirs = cast[who].send(method, f"/{route.replace(name, there[name])}", sent)
                nobodys = cast[who].send(method, f"/{route.replace(name, missing[name])}", sent)
                assert theirs.status in (403, 404), (method, route, who)
                assert (theirs.status, theirs.body) == (nobodys.status, nobodys.body), (method, route, who)


# ── X-User-ID ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("who", ["fin", "lea", "alice", "vic", "alice's key", "red's key", "lone key"])
def test_on_every_route_x_user_id_is_an_admins_alone(cast: Cast, who: str):
    for route, view in routes():
        for method in ("GET", "HEAD", "POST", "PATCH", "DELETE"):
            if hasattr(view, method.lower()) or (method == "HEAD" and hasattr(view, "get")):
                answer = cast[who].send(method, address(route, cast), {}, {"X-User-ID": "alice"})
                assert answer.status == 403, (method, route)
    assert not AuditEntry.objects.filter(action="act_as").exists()
    assert VirtualKey.objects.get(pk=cast.key.pk).revoked_at is None


@pytest.mark.parametrize("who", ["ada", "admin key"])
def test_on_every_route_it_narrows_an_admin_and_is_audited(cast: Cast, who: str):
    """As Charlie an admin gets from each route what Charlie gets, and each call has its entry."""
    calls = 0
    for route, view in routes():
        for method in ("GET", "PATCH", "DELETE"):
            if not hasattr(view, method.lower()):
                continue
            path, body = address(route, cast), {"name": "n"} if method == "PATCH" else None
            calls += 1
            narrowed = cast[who].send(method, path, body, {"X-User-ID": "charlie"})
            own = cast["charlie"].send(method, path, body)
            assert narrowed.status == own.status, (method, route)
            entry = AuditEntry.objects.filter(action="act_as").latest("id")
            assert entry.after == {"user_id": "charlie", "method": method, "path": path}
    assert AuditEntry.objects.filter(action="act_as").count() == calls > 10


# ── by the console ──────────────────────────────────────────────────────────────────────────────────────────────────

TABLES = (User, Team, VirtualKey, Budget, Price, Provider, Deployment, ModelGroup, GroupMember, Policy)


def everything() -> dict[str, list[dict[str, Any]]]:
    quiet = ("last_login", "last_used")
    return {
        model._meta.label: [
            {name: value for name, value in row.items() if name not in quiet}
            for row in model._default_manager.order_by("pk").values()
        ]
        for model in TABLES
    }


def all_actions(request: Any) -> list[tuple[str, str]]:
    """Every action that any list of the console knows, by the list's label."""
    request.user = User.objects.get(username="ada")
    return [
        (model._meta.label_lower, name)
        for model, theirs in admin.site._registry.items()
        for name in theirs.get_actions(request)
    ]


@pytest.mark.parametrize("who", ["fin", "lea", "lex", "alice", "charlie", "vic"])
def test_no_action_of_a_list_does_more_than_its_role_may(world: World, rf, who: str):
    """The worst a list can be sent: each action, confirmed, on everybody's rows."""
    client = signed_in(User.objects.get(username=who))
    before = everything()
    tried = all_actions(rf.get("/"))
    assert ("keys.virtualkey", "revoke_selected") in tried
    assert ("gateway.provider", "discover") in tried
    assert len(tried) > 12
    for label, name in tried:
        row = (
            world[label]
            if label != "keys.virtualkey"
            else world.cast.keys["charlie's key" if who == "alice" else "alice's key"]
        )
        sent = {"action": name, "_selected_action": [row.pk], "post": "yes", "confirmed": "yes", "reason": "spite"}
        answer = client.post(url("changelist", label), sent)
        assert answer.status_code in (200, 302, 403, 404), (label, name)
    theirs = {"fin": {"billing.Budget"}, "lea": {"billing.Budget", "keys.VirtualKey"}}.get(who, set())
    after = everything()
    assert {name for name in after if after[name] != before[name]} <= theirs


@pytest.mark.parametrize("who", ["fin", "lea", "alice", "vic"])
def test_fields_that_a_page_does_not_have_are_not_taken_from_a_post(world: World, who: str):
    """Mass assignment: every column, on every page that they may save."""
    client = signed_in(User.objects.get(username=who))
    wanted = {
        **{name: str(value) for name, value in GREED.items() if not isinstance(value, dict | list)},
        "role": "admin", "team": str(Team.objects.get(name="blue").pk),
        "user": str(User.objects.get(username="ada").pk),
        "managed_by": "", "is_active": "", "password": "x", "must_change_password": "", "digest": "x", "_save": "Save",
    }  # fmt: skip
    kept = ("roles", "teams", "active", "powerful keys", "teams' limits", "managed")
    before = {name: holdings("alice")[name] for name in kept}
    for page in (url("change", world["keys.virtualkey"]), url("change", world["keys.user"]), url("add", "keys.user"),
                 url("add", "keys.virtualkey"), url("change", world["keys.team"])):  # fmt: skip
        client.post(page, {**wanted, "username": "eve"})
        now = holdings("alice")
        roles = {name: role for name, role in now["roles"].items() if name != "eve"}
        assert User.objects.filter(username="eve").exclude(role="member").count() == 0, page
        User.objects.filter(username="eve").delete()
        assert {**{name: holdings("alice")[name] for name in kept}, "roles": roles} == before, page
    assert not VirtualKey.objects.filter(user__username="ada").exists()


def test_the_autocomplete_and_the_search_show_what_lists_show(world: World):
    for who in ("alice", "charlie", "lea", "fin", "vic"):
        client = signed_in(User.objects.get(username=who))
        for model, field in (("virtualkey", "user"), ("virtualkey", "team"), ("user", "team")):
            asked = {"app_label": "keys", "model_name": model, "field_name": field}
            answer = client.get(reverse("admin:autocomplete"), asked)
            names = {row["text"] for row in answer.json().get("results", [])} if answer.status_code == 200 else set()
            if who in ("alice", "charlie"):
                assert names == set(), (who, model, field)
            if who == "lea":
                assert not names & {"blue", "charlie", "lex", "ada"}, (model, field)
        found = client.get(reverse("admin:search"), {"s": "key"}).content.decode()
        assert "charlie's key" not in found or who in ("fin", "vic"), who


# ── markup in names ─────────────────────────────────────────────────────────────────────────────────────────────────

MARKUP = "<script>alert(1)</script>"


def test_names_are_text_on_every_page(world: World, ada: Client):
    Team.objects.filter(name="red").update(name=MARKUP, cost_centre=MARKUP)
    User.objects.filter(username="alice").update(username=MARKUP, display_name=MARKUP, email=MARKUP)
    VirtualKey.objects.filter(pk=world.cast.key.pk).update(
        name=MARKUP,
        tags=[MARKUP],
        metadata={MARKUP: MARKUP},
        allowed_models=[MARKUP],
        revoked_reason=MARKUP,
        hint=MARKUP[:8],
    )
    Provider.objects.update(slug=MARKUP, base_url=f"http://x/{MARKUP}", price_book=MARKUP)
    Deployment.objects.update(name=MARKUP, upstream_model=MARKUP)
    ModelGroup.objects.update(name=MARKUP)
    Policy.objects.update(name=MARKUP, blocked_terms=[MARKUP])
    Price.objects.update(model=MARKUP, note=MARKUP)
    for entry in AuditEntry.objects.all()[:1]:
        AuditEntry.objects.filter(pk=entry.pk)._raw_delete("default")
    AuditEntry.objects.create(
        actor=MARKUP, role="admin", via="api", ip="", action=MARKUP[:40], object_type=MARKUP, object_id=MARKUP,
        before={MARKUP: MARKUP}, after={MARKUP: MARKUP},
    )  # fmt: skip
    for model, theirs in admin.site._registry.items():
        label = model._meta.label_lower
        row = model._default_manager.order_by("pk").first() if label == "security.auditentry" else world[label]
        pages = [url("changelist", label), url("change", row), url("delete", row)]
        if theirs.search_fields:
            pages.append(f"{url('changelist', label)}?q=%3Cscript%3Ealert(1)%3C/script%3E")
        for page in pages:
            answer = ada.get(page)
            assert "<script>alert" not in answer.content.decode(), page
    answer = ada.post(url("revoke", world["keys.virtualkey"]), {"reason": MARKUP}, follow=True)
    assert "Revoked: " in answer.content.decode()
    assert "<script>alert" not in answer.content.decode()
