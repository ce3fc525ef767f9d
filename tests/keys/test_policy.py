"""The policy's table against the contract's, written down a second time by hand."""

import pytest
from django.core.exceptions import PermissionDenied

from gateway.types import Role
from keys import policy
from keys.actors import Actor

# http-api.md section 4, role by role: resource, then action=reach. What is not here is none.
EXPECTED = """
admin      keys             read=all create=all update=all rotate=all revoke=all
admin      key_limits       read=all update=all
admin      limits           read=all create=all update=all delete=all
admin      spend            read=all
admin      budgets          read=all create=all update=all delete=all
admin      alerts           read=all update=all
admin      webhooks         read=all create=all update=all delete=all
admin      prices           read=all create=all update=all delete=all
admin      reports          read=all create=all
admin      providers        read=all create=all update=all delete=all
admin      routing          read=all create=all update=all delete=all
admin      routing_stats    read=all
admin      policies         read=all create=all update=all delete=all
admin      security_events  read=all
admin      security_counts  read=all
admin      sessions         read=all create=all delete=all
admin      collections      read=all create=all delete=all
admin      people           read=all create=all update=all act_as=all
admin      audit            read=all
finance    keys             read=all
finance    key_limits       read=all
finance    limits           read=all
finance    spend            read=all
finance    budgets          read=all create=all update=all delete=all
finance    alerts           read=all update=all
finance    prices           read=all create=all update=all delete=all
finance    reports          read=all create=all
finance    providers        read=all
finance    routing          read=all
finance    routing_stats    read=all
finance    policies         read=all
finance    people           read=all
team_lead  keys             read=team create=team update=team rotate=team revoke=team
team_lead  key_limits       read=team update=team
team_lead  spend            read=team
team_lead  budgets          read=team create=team update=team delete=team
team_lead  routing_stats    read=all
team_lead  security_counts  read=team
team_lead  people           read=team create=team update=team
member     keys             read=own create=own update=own rotate=own revoke=own
member     key_limits       read=own
member     spend            read=own
member     budgets          read=own
member     routing_stats    read=all
member     security_counts  read=own
member     sessions         read=own create=own delete=own
member     collections      read=own create=own delete=own
viewer     keys             read=all
viewer     key_limits       read=all
viewer     limits           read=all
viewer     spend            read=all
viewer     budgets          read=all
viewer     alerts           read=all
viewer     prices           read=all
viewer     reports          read=all
viewer     providers        read=all
viewer     routing          read=all
viewer     routing_stats    read=all
viewer     policies         read=all
viewer     security_counts  read=all
viewer     people           read=all
"""
TABLE = {
    (role, resource, action): reach
    for role, resource, *cells in map(str.split, EXPECTED.strip().splitlines())
    for action, reach in (cell.split("=") for cell in cells)
}
CELLS = [(resource, action) for resource, actions in policy.ACTIONS.items() for action in actions]


def actor(role: str, **fields: object) -> Actor:
    return Actor(role=Role(role), via="api", **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize("role", [role.value for role in Role])
def test_every_cell_is_the_contracts(role: str):
    reached = {(resource, action): policy.reach(actor(role), resource, action).value for resource, action in CELLS}
    assert reached == {cell: TABLE.get((role, *cell), "none") for cell in CELLS}


def test_the_expectation_names_only_what_there_is():
    assert {(resource, action) for _, resource, action in TABLE} <= set(CELLS)


@pytest.mark.parametrize("role", [role.value for role in Role])
def test_a_persons_key_is_a_members_whatever_the_person_is(role: str):
    own = actor(role, user_id="alice", own_only=True)
    for resource, action in CELLS:
        assert policy.grant(own, resource, action) == policy.grant(actor("member"), resource, action)


FIELDS = {
    ("admin", "keys", "create"): None,
    ("admin", "keys", "update"): None,
    ("admin", "key_limits", "update"): None,
    ("admin", "people", "update"): None,
    ("finance", "keys", "update"): set(),
    ("finance", "key_limits", "update"): set(),
    ("finance", "providers", "read"): {"slug", "name"},
    ("finance", "policies", "read"): {"slug", "name"},
    ("finance", "budgets", "update"): None,
    ("team_lead", "keys", "create"): {"name", "user_id", "team", "expires_at", "metadata", "tags"},
    ("team_lead", "keys", "update"): {"name", "expires_at", "metadata", "tags"},
    ("team_lead", "key_limits", "update"): {
        "monthly_quota_dollars", "monthly_quota_tokens", "rate_limit_rpm", "rate_limit_tpm", "max_parallel",
        "max_wait_ms", "allowed_models",
    },
    ("team_lead", "budgets", "update"): {"limit_dollars", "limit_tokens"},
    ("member", "keys", "create"): {"name", "expires_at", "metadata", "tags"},
    ("member", "keys", "update"): {"name"},
    ("member", "key_limits", "update"): set(),
    ("viewer", "keys", "update"): set(),
    ("viewer", "providers", "read"): None,
}  # fmt: skip


@pytest.mark.parametrize("cell", FIELDS, ids=" ".join)
def test_fields(cell: tuple[str, str, str]):
    role, resource, action = cell
    assert policy.allowed_fields(actor(role), resource, action) == FIELDS[cell]


@pytest.mark.parametrize("role", ["finance", "team_lead", "member", "viewer"])
@pytest.mark.parametrize("action", ["create", "update"])
def test_nobody_but_an_admin_may_give_a_key_or_person_a_role(role: str, action: str):
    for resource in ("keys", "people"):
        with pytest.raises(PermissionDenied):
            policy.require_fields(actor(role), resource, action, {"role"})


def test_a_typing_slip_is_an_error_and_not_a_refusal():
    with pytest.raises(KeyError):
        policy.reach(actor("admin"), "key", "read")
    with pytest.raises(KeyError):
        policy.reach(actor("admin"), "keys", "delete")


def test_a_refusal_names_the_field_and_the_role():
    with pytest.raises(PermissionDenied, match=r"role member may not set role, team\."):
        policy.require_fields(actor("member"), "keys", "create", {"team", "role", "name"})


@pytest.mark.parametrize(
    ("who", "owner", "may"),
    [
        (actor("admin"), {"user_id": None, "team": None}, True),
        (actor("team_lead", user_id="lea", team="red"), {"user_id": "alice", "team": "red"}, True),
        (actor("team_lead", user_id="lea", team="red"), {"user_id": "charlie", "team": "blue"}, False),
        (actor("team_lead", user_id="lea", team="red"), {"user_id": "lea", "team": "blue"}, True),
        (actor("team_lead", user_id="lea", team=None), {"user_id": None, "team": None}, False),
        (actor("member", user_id="alice", team="red"), {"user_id": "alice", "team": None}, True),
        (actor("member", user_id="alice", team="red"), {"user_id": "bob", "team": "red"}, False),
        (actor("member", user_id="alice", key_id="k1"), {"user_id": None, "team": None, "key_id": "k1"}, False),
        (actor("member", key_id="k1", own_only=True), {"user_id": None, "team": None, "key_id": "k1"}, True),
        (actor("member", key_id="k1", own_only=True), {"user_id": None, "team": None, "key_id": "k2"}, False),
        (actor("member"), {"user_id": None, "team": None, "key_id": None}, False),
        (actor("viewer", user_id="vic"), {"user_id": "vic", "team": None}, False),
    ],
)
def test_whose_key_may_be_rotated(who: Actor, owner: dict, may: bool):
    if may:
        policy.require_over(who, "keys", "rotate", **owner)
    else:
        with pytest.raises(PermissionDenied):
            policy.require_over(who, "keys", "rotate", **owner)
