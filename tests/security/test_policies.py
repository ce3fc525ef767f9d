"""Policies: what may be saved, and which one applies to whom."""

import pytest
from django.core.exceptions import ValidationError
from django.db import IntegrityError, transaction

from gateway.models import ConfigVersion
from security import engine, policies
from security.detectors.base import Action, Category
from security.policies import Policy, Scope, ScreenPolicies, load_policies
from tests.security.builders import caller, chat, user

pytestmark = pytest.mark.django_db


def test_without_a_policy_the_built_in_balanced_one_applies():
    found = load_policies().for_caller(caller())
    assert found == ScreenPolicies().organisation
    assert found.name == "balanced"
    assert found.actions == {Category.SECRET: Action.SANITIZE, Category.CUSTOM: Action.BLOCK}


@pytest.mark.parametrize(
    ("key_id", "team", "expected"),
    [
        ("key_1", "red", "of the key"),
        ("key_1", None, "of the key"),
        ("key_2", "red", "of the team"),
        ("key_2", "blue", "of all"),
        ("key_2", None, "of all"),
        ("red", "key_1", "of all"),
    ],
)
def test_the_narrowest_policy_applies(key_id, team, expected):
    Policy.objects.create(name="of all")
    Policy.objects.create(name="of the team", scope=Scope.TEAM, owner="red")
    Policy.objects.create(name="of the key", scope=Scope.KEY, owner="key_1")
    assert load_policies().for_caller(caller(key_id=key_id, team=team)).name == expected


def test_a_policy_is_read_as_it_was_saved():
    Policy.objects.create(name="p", actions={"secret": "block"}, blocked_terms=[" Titan ", "TITAN", "Größe"])
    found = load_policies().organisation
    assert found.actions == {Category.SECRET: Action.BLOCK, Category.CUSTOM: Action.BLOCK}
    assert engine.screen(chat([user("about titan")]), found).action == "block"
    assert engine.screen(chat([user("GRÖSSE")]), found).action == "block"
    assert len(found.blocked_terms) == 2, "a term was kept twice"


def test_a_disabled_policy_does_not_apply():
    policy = Policy.objects.create(name="p")
    policy.enabled = False
    policy.save()
    assert load_policies().organisation.name == "balanced"


def test_one_policy_is_in_force_for_an_owner():
    Policy.objects.create(name="draft", enabled=False)
    Policy.objects.create(name="p")
    with pytest.raises(IntegrityError), transaction.atomic():
        Policy.objects.create(name="q")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("actions", {"secret": "shout"}),
        ("actions", {"secret": None}),
        ("actions", {"secret": ["block"]}),
        ("actions", {"weather": "block"}),
        ("actions", ["block"]),
        ("actions", []),
        ("actions", ""),
        ("actions", None),
        ("blocked_terms", ""),
        ("blocked_terms", {}),
        ("blocked_terms", "titan"),
        ("blocked_terms", ["ab"]),
        ("blocked_terms", ["  ab  "]),
        ("blocked_terms", ["a\u200b\u200bb"]),
        ("blocked_terms", ["x" * 201]),
        ("blocked_terms", [7]),
        ("blocked_terms", ["tit\nan"]),
        ("blocked_terms", ["tit\ud800an"]),
        ("blocked_terms", ["term"] * 101),
        ("scope", "world"),
        ("name", ""),
    ],
)
def test_a_bad_rule_is_refused_when_it_is_saved(field, value):
    with pytest.raises(ValidationError) as refused:
        Policy.objects.create(**{"name": "p", field: value})
    assert field in refused.value.message_dict
    assert not Policy.objects.exists()


@pytest.mark.parametrize("terms", [["abc"], ["x" * 200], ["機密情報"], ["term"] * 100])
def test_a_good_rule_is_saved(terms):
    Policy.objects.create(name="p", blocked_terms=terms)
    assert load_policies().organisation.name == "p"


@pytest.mark.parametrize(("scope", "owner"), [("organisation", "red"), ("team", ""), ("key", "")])
def test_scope_and_owner_go_together(scope, owner):
    with pytest.raises(ValidationError):
        Policy.objects.create(name="p", scope=scope, owner=owner)


@pytest.mark.parametrize("broken", [{"actions": {"secret": "shout"}}, {"actions": []}, {"blocked_terms": [7]}])
def test_a_policy_that_was_broken_past_the_model_blocks_and_stops_nobody_else(broken, monkeypatch):
    monkeypatch.setattr(policies, "log", _Silent())
    Policy.objects.create(name="of all")
    Policy.objects.create(name="broken", scope=Scope.TEAM, owner="red")
    Policy.objects.filter(name="broken").update(**broken)
    loaded = load_policies()
    assert loaded.for_caller(caller()).name == "of all"
    assert set(loaded.for_caller(caller(team="red")).actions.values()) == {Action.BLOCK}


class _Silent:
    def error(self, *args, **fields):
        pass


def test_every_change_raises_the_snapshots_version():
    def number():
        return ConfigVersion.objects.get(section="policies").number

    policy = Policy.objects.create(name="p")
    seen = [number()]
    policy.blocked_terms = ["titan"]
    policy.save()
    seen.append(number())
    Policy.objects.update(enabled=False)
    seen.append(number())
    policy.delete()
    seen.append(number())
    assert seen == sorted(set(seen))
