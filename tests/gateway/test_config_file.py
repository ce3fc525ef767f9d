"""The configuration file: one schema with the API, whole or not at all, read-only elsewhere, a no-op when repeated."""

import io
import re
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings as django_settings
from django.core.management import CommandError, call_command
from django.test.utils import override_settings
from pydantic import SecretStr

from ailb_project import bootstrap
from ailb_project.env import Env
from billing.models import Budget
from gateway import config_file, environment, vault
from gateway.models import ConfigVersion, Deployment, GroupMember, ModelGroup, Provider, TrafficWeight
from keys import authentication, secrets
from keys.models import RateLimit, Team, User, VirtualKey
from security.models import AuditEntry, Policy
from tests.api.doors import Door, make_key
from tests.support.world import make_deployment, make_group, make_provider

pytestmark = pytest.mark.usefixtures("committed")

DOCS = Path(__file__).resolve().parents[2] / "docs" / "config-file.md"
SECRET = secrets.new_secret(b"1" * 32)
OTHER = secrets.new_secret(b"2" * 32)
UPSTREAM = "sk-upstream-of-the-file"

FILE = """
providers:
  - slug: acme
    kind: openai
    base_url: http://127.0.0.1:9/v1
    api_key: ${ACME_KEY}
    headers: {x-project: "${ACME_KEY}"}
    timeouts: {idle: 30}
deployments:
  - {name: big, provider: acme, upstream_model: gpt-4o, version: v1, rpm: 60, capabilities: [tools]}
  - {name: small, provider: acme, upstream_model: gpt-4o-mini, weight: 2}
groups:
  - {name: chat, deployments: [acme/gpt-4o], fallbacks: [cheap]}
  - {name: cheap, deployments: [small], strategy: failover, hedging: yes}
weights:
  - {version: v1, weight: 90}
  - {version: v1, weight: 10, group: chat}
teams:
  - {name: red, rate_limit_rpm: 100}
keys:
  - {name: travel, team: red, secret: "${TRAVEL_KEY}", monthly_quota_dollars: 50, tags: [t]}
budgets:
  - {team: red, limit_dollars: 100}
  - {key_id: travel, period: daily, limit_tokens: 1000}
policies:
  - {name: strict, blocked_terms: [falcon]}
  - {name: travel desk, scope: key, owner: travel, actions: {secret: block}}
limits:
  - {scope: organisation, rate_limit_rpm: 5000}
  - {scope: key_model, owner: travel, model: chat, max_parallel: 4}
"""


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACME_KEY", UPSTREAM)
    monkeypatch.setenv("TRAVEL_KEY", SECRET)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "gateway.yaml"


def run(file: Path, text: str = FILE, *options: str) -> list[str]:
    """Apply a text by the command; its lines."""
    file.write_text(text)
    out = io.StringIO()
    call_command("apply_config", str(file), *options, stdout=out)
    return out.getvalue().splitlines()


def refusal(file: Path, text: str) -> str:
    with pytest.raises(CommandError) as refused:
        run(file, text)
    told = str(refused.value)
    assert "\n" not in told
    assert told.startswith(str(file))
    return told.removeprefix(str(file))


def without(text: str, *lines: str) -> str:
    """The text without the lines that hold one of these."""
    return "\n".join(line for line in text.splitlines() if not any(part in line for part in lines))


def everything() -> dict[str, Any]:
    models = (
        Provider, Deployment, ModelGroup, GroupMember, TrafficWeight, Team, VirtualKey, User, RateLimit, Budget, Policy,
    )  # fmt: skip
    VirtualKey.objects.all().update_quietly(last_used=None)  # every call says when it was
    rows = {model.__name__: list(model.objects.order_by("pk").values()) for model in (*models, ConfigVersion)}
    return {**rows, "audit": AuditEntry.objects.count()}


def without_ids(lines: list[str]) -> list[str]:
    return [re.sub(r"key_[0-9a-f]{20}", "key_…", line) for line in lines]


# ── applying ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_all_of_it_is_there_and_says_who_defined_it(file: Path):
    lines = run(file)
    assert [line.split()[0] for line in lines] == ["create"] * len(lines)
    assert "create provider acme" in lines
    admin = Door(secret=make_key("admin", role="admin")[1])
    shown = admin.get("/api/providers/acme").body
    assert (shown["timeouts"]["idle"], shown["api_key_set"], shown["managed_by"]) == (30, True, "file")
    opened = vault.open_sealed(Provider.objects.get(slug="acme").credentials)
    assert opened == {"api_key": UPSTREAM, "headers": {"x-project": UPSTREAM}}
    big = admin.get("/api/deployments/big").body
    assert (big["version"], big["rpm"], big["capabilities"]["vision"]) == ("v1", 60, False)
    chat = admin.get("/api/models/chat").body
    assert (chat["deployments"], chat["fallbacks"], chat["managed_by"]) == (["big"], ["cheap"], "file")
    assert admin.get("/api/models/cheap").body["hedging"] is True
    weights = admin.get("/api/routing/weights").body["weights"]
    assert [(row["group"], row["weight"], row["managed_by"]) for row in weights] == [
        (None, 90, "file"), ("chat", 10, "file"),
    ]  # fmt: skip
    assert admin.get("/api/teams/red").body["managed_by"] == "file"
    key = VirtualKey.objects.get(name="travel")
    assert (key.managed_by, key.team.name if key.team else None, key.tags) == ("file", "red", ["t"])
    budgets = {(b["scope"], b["period"]): b for b in admin.get("/api/billing/budget").body["budgets"]}
    assert set(budgets) == {("key", "monthly"), ("key", "daily"), ("team", "monthly")}
    assert {budget["managed_by"] for budget in budgets.values()} == {"file"}
    assert set(Policy.objects.values_list("name", "owner")) == {("strict", ""), ("travel desk", key.pk)}
    limits = {(row["scope"], row["owner"], row["model"]): row for row in admin.get("/api/limits").body["limits"]}
    assert set(limits) == {("organisation", None, None), ("key_model", key.pk, "chat")}
    assert {limit["managed_by"] for limit in limits.values()} == {"file"}


def test_its_key_is_one(file: Path, settings: Any):
    run(file)
    caller = authentication.authenticate(authentication.load(), SECRET, pepper=settings.KEY_PEPPER, now=0)
    assert (caller.key_name, caller.team) == ("travel", "red")


def test_the_same_again_changes_nothing(file: Path):
    run(file)
    before = everything()
    assert run(file) == ["nothing to change"]
    assert everything() == before


def test_a_plan_says_it_and_does_nothing(file: Path):
    before = everything()
    lines = run(file, FILE, "--plan")
    assert everything() == before
    assert without_ids(lines) == without_ids(run(file))
    changed = FILE.replace("weight: 2", "weight: 3").replace("version: v1, rpm: 60, ", "").replace("[small]", "[big]")
    changed = without(changed, "version: v1, weight: 90", "name: strict")
    before = everything()
    lines = run(file, changed, "--plan")
    assert everything() == before
    assert lines == [
        'change deployment big: version "v1" → "", rpm 60 → null',
        "change deployment small: weight 2 → 3",
        'change model group cheap: members ["small"] → ["big"]',
        "remove traffic weight v1 of all: 90",
        "disable policy strict",
    ]
    assert lines == run(file, changed)


def test_no_secret_is_told_or_logged(file: Path, monkeypatch: pytest.MonkeyPatch):
    lines = run(file)
    for name, value in (("ACME_KEY", "sk-upstream-second"), ("TRAVEL_KEY", OTHER)):
        monkeypatch.setenv(name, value)
    lines += run(file, FILE, "--plan") + run(file)
    assert 'change provider acme: credentials "(set)" → "(replaced)"' in lines
    told = "\n".join(lines) + str(list(AuditEntry.objects.values()))
    for secret in (UPSTREAM, "sk-upstream-second", SECRET, OTHER):
        assert secret not in told


def test_what_an_entry_omits_is_as_in_a_new_row(file: Path):
    run(file)
    bare = FILE.replace("    timeouts: {idle: 30}\n", "").replace("    api_key: ${ACME_KEY}\n", "")
    bare = bare.replace(", rate_limit_rpm: 100", "").replace(", monthly_quota_dollars: 50, tags: [t]", "")
    bare = bare.replace(", strategy: failover, hedging: yes", "").replace(", fallbacks: [cheap]", "")
    run(file, bare)
    provider = Provider.objects.get(slug="acme")
    assert (provider.idle_timeout, vault.open_sealed(provider.credentials)["api_key"]) == (120, None)
    assert Team.objects.get().rate_limit_rpm is None
    assert VirtualKey.objects.get(name="travel").tags == []
    assert not Budget.objects.filter(scope="key", period="monthly").exists()
    assert (ModelGroup.objects.get(name="cheap").strategy, ModelGroup.objects.get(name="chat").fallbacks.count()) == (
        "", 0,
    )  # fmt: skip
    assert run(file, bare) == ["nothing to change"]


def test_limits_and_waits_follow_the_file(file: Path):
    waiting = FILE.replace("rate_limit_rpm: 100", "max_wait_ms: 5000, queue_weight: 3")
    waiting = waiting.replace("tags: [t]", "max_wait_ms: 100, queue_weight: 2")
    run(file, waiting)
    team, key = Team.objects.get(), VirtualKey.objects.get(name="travel")
    assert (team.max_wait_ms, team.queue_weight, key.max_wait_ms, key.queue_weight) == (5000, 3, 100, 2)
    changed = FILE.replace("rate_limit_rpm: 5000", "rate_limit_tpm: 7000").replace("max_parallel: 4", "max_parallel: 5")
    assert run(file, changed) == [
        "change team red: rate_limit_rpm null → 100, max_wait_ms 5000 → null, queue_weight 3 → 1",
        f'change virtual key {key}: max_wait_ms 100 → null, queue_weight 2 → 1, tags [] → ["t"]',
        "change rate limit organisation: rate_limit_rpm 5000 → null, rate_limit_tpm null → 7000",
        f"change rate limit key_model {key.pk} chat: max_parallel 4 → 5",
    ]
    assert run(file, changed) == ["nothing to change"]


# ── what has gone ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_what_has_gone_is_switched_off_and_what_comes_back_works_again(file: Path, settings: Any):
    run(file)
    lines = run(file, "")
    assert {line.split()[0] for line in lines} == {"disable", "remove"}
    assert not Provider.objects.filter(enabled=True).exclude(slug="demo").exists()
    assert not Deployment.objects.filter(name__in=["big", "small"], enabled=True).exists()
    assert (ModelGroup.objects.count(), GroupMember.objects.count(), TrafficWeight.objects.count()) == (2, 0, 0)
    assert Team.objects.get().rate_limit_rpm == 100, "a team has no switch"
    assert VirtualKey.objects.get(name="travel").status == "expired"
    assert set(Budget.objects.values_list("scope", "period")) == {("key", "monthly")}
    assert not RateLimit.objects.exists()
    assert not Policy.objects.filter(enabled=True).exists()
    assert run(file, "") == ["nothing to change"]

    lines = run(file)
    assert "change virtual key" in "\n".join(lines)
    caller = authentication.authenticate(authentication.load(), SECRET, pepper=settings.KEY_PEPPER, now=0)
    assert caller.key_name == "travel"
    assert Deployment.objects.filter(enabled=True, managed_by="file").count() == 2
    assert run(file) == ["nothing to change"]


def test_the_demo_makes_room_and_comes_back(file: Path):
    environment.apply(Env.model_construct(**Env().model_dump()))
    assert Deployment.objects.get(enabled=True).name == "ailb-demo"
    run(file)
    assert not Provider.objects.get(slug="demo").enabled
    run(file, "")
    assert Provider.objects.get(slug="demo").enabled


def test_a_policy_makes_room_for_another_of_the_same_owner(file: Path):
    run(file)
    run(file, FILE.replace("name: strict", "name: stricter"))
    assert set(Policy.objects.filter(owner="", enabled=True).values_list("name", flat=True)) == {"stricter"}


# ── keys ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_key_is_renamed_by_its_secret_and_given_another_by_its_name(file: Path, monkeypatch: pytest.MonkeyPatch):
    run(file)
    key = VirtualKey.objects.get(name="travel")
    renamed = FILE.replace("name: travel,", "name: tours,").replace("key_id: travel", "key_id: tours")
    renamed = renamed.replace("owner: travel", "owner: tours")
    run(file, renamed)
    assert VirtualKey.objects.get(managed_by="file").name == "tours"
    monkeypatch.setenv("TRAVEL_KEY", OTHER)
    run(file, renamed)
    stored = VirtualKey.objects.get(managed_by="file")
    assert (stored.pk, stored.name) == (key.pk, "tours")
    assert stored.digest == secrets.digest(OTHER, django_settings.KEY_PEPPER)
    assert run(file, renamed) == ["nothing to change"]


def test_a_budget_that_the_console_gave_its_key_stays(file: Path):
    text = FILE.replace(", monthly_quota_dollars: 50", "")
    run(file, text)
    admin = Door(secret=make_key("admin", role="admin")[1])
    key = VirtualKey.objects.get(name="travel")
    assert admin.post("/api/billing/budget", key_id=key.pk, limit_dollars=7).status == 201
    assert run(file, text) == ["nothing to change"]
    assert Budget.objects.get(scope="key", period="monthly").limit_dollars == 7
    assert "keys[0].monthly_quota_dollars: The key has a monthly budget" in refusal(file, FILE)


# ── elsewhere ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_elsewhere_it_is_only_read(file: Path):
    run(file)
    admin = Door(secret=make_key("admin", role="admin")[1])
    key = VirtualKey.objects.get(name="travel").pk
    before = everything()
    budgets = [f"/api/billing/budgets/{budget.pk}" for budget in Budget.objects.all()]
    limits = [f"/api/limits/{limit.pk}" for limit in RateLimit.objects.all()]
    calls = [
        ("PATCH", "/api/providers/acme", {"enabled": False}), ("DELETE", "/api/providers/acme", None),
        ("POST", "/api/providers/acme/discover", {}), ("PATCH", "/api/deployments/big", {"weight": 5}),
        ("DELETE", "/api/deployments/big", None), ("PATCH", "/api/models/chat", {"strategy": "random"}),
        ("DELETE", "/api/models/chat", None), ("PUT", "/api/routing/weights", {"version": "v1", "weight": 1}),
        ("DELETE", "/api/routing/weights/v1", None), ("PATCH", "/api/teams/red", {"rate_limit_rpm": 1}),
        ("PATCH", f"/api/keys/{key}", {"name": "mine"}), ("DELETE", f"/api/keys/{key}", None),
        ("POST", f"/api/keys/{key}/rotate", {}), ("POST", "/api/billing/budget", {"team": "red", "limit_dollars": 1}),
        ("POST", "/api/billing/budget", {"key_id": key, "limit_dollars": 1}),
        *(("PATCH", path, {"limit_dollars": 1}) for path in budgets), *(("DELETE", path, None) for path in budgets),
        ("PUT", "/api/limits", {"scope": "organisation", "max_parallel": 1}),
        *(("PATCH", path, {"max_parallel": 1}) for path in limits), *(("DELETE", path, None) for path in limits),
    ]  # fmt: skip
    told = {f"{method} {path}": admin.send(method, path, body).status for method, path, body in calls}
    # An OpenAI-compatible server is not asked for its models at all.
    assert told.pop("POST /api/providers/acme/discover") == 400
    assert set(told.values()) == {409}, told
    assert everything() == before


def test_discovery_does_not_add_to_what_a_file_defines(file: Path):
    run(file, "providers: [{slug: local, kind: ollama, base_url: 'http://127.0.0.1:9'}]")
    admin = Door(secret=make_key("admin", role="admin")[1])
    answer = admin.post("/api/providers/local/discover")
    assert (answer.status, answer.body["detail"]) == (409, "The file names its models: change them there.")


def test_a_provider_of_the_console_is_not_deleted_under_a_files_deployment(file: Path):
    make_provider("http://127.0.0.1:9/v1", slug="mine")
    run(file, "deployments: [{name: d, provider: mine, upstream_model: m}]")
    admin = Door(secret=make_key("admin", role="admin")[1])
    assert admin.delete("/api/providers/mine").status == 409
    assert Deployment.objects.filter(name="d").exists()


def test_what_is_there_already_is_not_taken_over(file: Path):
    make_deployment(make_provider("http://127.0.0.1:9/v1", slug="mine"), "big")
    before = everything()
    assert refusal(file, FILE) == (
        ":10: deployments[0]: the console has one of this name already: rename one of the two, or take it out there"
    )
    Deployment.objects.filter(name="big").update(managed_by="environment")
    assert "the environment defines one of this name already" in refusal(file, FILE)
    Deployment.objects.filter(name="big").update(managed_by="")
    assert {name: rows for name, rows in everything().items() if name != "ConfigVersion"} == {
        name: rows for name, rows in before.items() if name != "ConfigVersion"
    }


def test_what_has_gone_from_the_environment_can_move_into_the_file(file: Path, settings: Any):
    names = {"OPENAI_API_KEY": SecretStr("sk-x"), "OPENAI_MODELS": ("big", "old")}
    settings.ENV = Env.model_construct(**{**Env().model_dump(), **names})
    environment.apply(settings.ENV)
    moved = FILE.replace("slug: acme", "slug: openai").replace("acme", "openai")
    assert "providers[0]: the environment defines one of this name already" in refusal(file, moved)
    assert Provider.objects.get(slug="openai").managed_by == "environment"
    settings.ENV = Env.model_construct(**Env().model_dump())
    lines = run(file, moved)
    assert any(line.startswith('change provider openai: managed_by "environment" → "file"') for line in lines)
    environment.apply(settings.ENV)
    assert set(Deployment.objects.filter(enabled=True).values_list("name", "managed_by")) >= {
        ("big", "file"), ("small", "file"),
    }  # fmt: skip
    assert run(file, moved) == ["nothing to change"]


def test_a_group_of_the_console_is_not_deleted_under_a_files_weight(file: Path):
    make_group("mine", make_deployment(make_provider("http://127.0.0.1:9/v1")))
    run(file, "weights: [{version: v, weight: 1, group: mine}]")
    assert Door(secret=make_key("admin", role="admin")[1]).delete("/api/models/mine").status == 409


def test_a_secret_that_the_console_s_key_has_is_refused(file: Path):
    make_key("mine", secret=SECRET)
    assert "keys[0]: the console has one" in refusal(file, FILE)


# ── a wrong file ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("was", "now", "told"),
    [
        ("weight: 2}", "weigth: 2}", ":11: deployments[1].weigth: unknown; takes name, provider, upstream_model, "),
        ("{idle: 30}", "{idel: 30}", ":8: providers[0].timeouts.idel: unknown; takes connect, first_byte, idle"),
        ("weight: 2}", "weight: two}", ":11: deployments[1].weight: A valid integer is required."),
        ("weight: 2}", "weight: .nan}", ":11: deployments[1].weight: takes what JSON has"),
        ("weight: 2}", "weight: !!binary aGk=}", ":11: deployments[1].weight: takes what JSON has"),
        ("weight: 2}", "weight: 2, weight: 3}", ":11: takes YAML: weight is there twice"),
        ("weight: 2}", "1: 2}", ":11: deployments[1]: got a name that is no text"),
        ("kind: openai", "kind: opneai", ":4: providers[0].kind: takes anthropic, "),
        ("slug: acme", "slug: Acme", ":3: providers[0].slug: Lower-case letters"),
        ("  - slug: acme\n", "  - price_book: x\n", ":3: providers[0].slug: This field is required."),
        ("idle: 30", "idle: 0", ":8: providers[0].timeouts.idle: Ensure this value is greater"),
        ("provider: acme, upstream_model: gpt-4o-mini", "provider: nope, upstream_model: m",
         ":11: deployments[1].provider: There is no provider of this slug."),
        ("[tools]", "[flying]", ":10: deployments[0].capabilities: Not known: flying."),
        ("[acme/gpt-4o]", "[acme/gpt-5]", ":13: groups[0].deployments: There is no deployment or model"),
        ("[acme/gpt-4o]", "[a, 5]", ":13: groups[0].deployments[1]: Not a valid string."),
        ("fallbacks: [cheap]", "fallbacks: [chat]", ":13: groups[0].fallbacks: A group does not fall back to itself."),
        ("weight: 90", "weight: 900", ":16: weights[0].weight: Ensure this value is less"),
        ("weight: 10, group: chat", "weight: 10", ":17: weights[1]: got the same as on line 16 again"),
        ("name: small", "name: big", ":11: deployments[1]: got the same as on line 10 again"),
        ("team: red, secret", "team: blue, secret", ":21: keys[0].team: There is no team of this name"),
        ("${TRAVEL_KEY}", "sk-ailb_tooshort", ":21: keys[0].secret: A virtual key, sk-ailb_…, with its checksum."),
        ("${TRAVEL_KEY}", "${NOT_SET}", ":21: keys[0].secret: ${NOT_SET}: got nothing; takes the environment variable"),
        ("${TRAVEL_KEY}", "${not a name}", ":21: keys[0].secret: takes ${NAME}"),
        ("key_id: travel, period: daily", "key_id: travel", ":24: budgets[1].key_id: A key of this file has its month"),
        ("key_id: travel,", "key_id: nobody,", ":24: budgets[1].key_id: There is no key of this name"),
        ("team: red, limit_dollars: 100", "limit_dollars: 100", ":23: budgets[0]: One of key_id"),
        ("[falcon]", "[fa]", ":26: policies[0].blocked_terms: Terms have 3 to 200"),
        ("secret: block", "secret: explode", ":27: policies[1].actions: Actions are"),
        ("scope: organisation, rate", "scope: team, owner: red, rate", ":29: limits[0].scope: A team's limits are"),
        ("rate_limit_rpm: 5000", "rate_limit_rpm: null", ":29: limits[0].rate_limit_rpm: A limit limits something"),
        ("scope: organisation, rate", "scope: key_model, owner: travel, model: chat, rate",
         ":30: limits[1]: got the same as on line 29 again"),
        ("owner: travel, model: chat", "owner: nobody, model: chat", ":30: limits[1].owner: There is no key of this"),
        ("owner: travel, model: chat", "owner: travel, model: chta", ":30: limits[1].model: There is no deployment"),
        ("owner: travel, model: chat", "owner: travel", ":30: limits[1].model: This scope needs one."),
        ("policies:", "polices:", ":25: polices: unknown section; takes providers, deployments, groups, weights"),
        ("teams:", "users:", ":18: users: unknown section"),
        ("  - {name: red, rate_limit_rpm: 100}", "  name: red", ":18: teams: takes a list"),
        ("  - {name: red, rate_limit_rpm: 100}", "  - red", ":19: teams[0]: Invalid data."),
    ],
    ids=lambda text: str(text)[:40],
)  # fmt: skip
def test_a_wrong_file_changes_nothing_and_says_where(file: Path, was: str, now: str, told: str):
    assert FILE.count(was) == 1
    before = everything()
    message = refusal(file, FILE.replace(was, now))
    assert message.startswith(told)
    assert everything() == before


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("- a\n- b", ":1: takes an object of providers"), ("providers: [", ":1: takes YAML"),
        ("a: &x [*x]", ": nested too deeply"), ("a: *nobody", ":1: takes YAML: found undefined alias"),
        ("a: !!python/object:os.system {}", ":1: takes YAML"), ("\x00", ": takes YAML"), ("a: b\n---\nc: d", ":"),
    ],
)  # fmt: skip
def test_what_is_no_such_file(file: Path, text: str, told: str):
    assert refusal(file, text).startswith(told)


def test_a_file_that_is_not_there(file: Path):
    with pytest.raises(CommandError, match=r"takes a file that can be read: No such file"):
        call_command("apply_config", str(file))
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(CommandError, match=r"takes text in UTF-8"):
        call_command("apply_config", str(file))


def test_an_error_repeats_no_secret(file: Path):
    for wrong in (
        FILE.replace("kind: openai", "kind: openai\n    api_key: [x"),
        FILE.replace("name: red", "nmae: red"),
        FILE.replace("kind: openai", "kind: ${ACME_KEY}"),
    ):
        told = refusal(file, wrong.replace("${ACME_KEY}", "sk-in-the-file").replace("${TRAVEL_KEY}", OTHER))
        assert "sk-in-the-file" not in told
        assert OTHER not in told


def test_anchors_and_files_of_secrets(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "key").write_text(f"{OTHER}\n")
    monkeypatch.delenv("TRAVEL_KEY")
    monkeypatch.setenv("TRAVEL_KEY_FILE", str(tmp_path / "key"))
    text = FILE.replace("weight: 2}", "weight: 2, <<: *shared}").replace("  - {name: big,", "  - &shared {name: big,")
    run(file, text.replace('x-project: "${ACME_KEY}"', 'x-project: "$${ACME_KEY}"'))
    assert Deployment.objects.get(name="small").rpm == 60
    assert VirtualKey.objects.get().hint == OTHER[-4:]
    opened = vault.open_sealed(Provider.objects.get(slug="acme").credentials)
    assert opened["headers"] == {"x-project": "${ACME_KEY}"}
    monkeypatch.setenv("TRAVEL_KEY_FILE", str(tmp_path / "gone"))
    assert "TRAVEL_KEY_FILE: takes a file of text" in refusal(file, text)


# ── at the start ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_it_is_applied_at_each_start(file: Path, settings: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(bootstrap.liveness, "sign_on_early", lambda data_dir: None)  # it would be alive at the next one
    settings.DATA_DIR = tmp_path / "data"
    file.write_text(FILE)
    with override_settings(ENV=Env.model_construct(**{**Env().model_dump(), "AILB_CONFIG": file})):
        bootstrap.prepare(workers=1)
        assert set(Deployment.objects.filter(enabled=True).values_list("name", flat=True)) == {"big", "small"}
        bootstrap.prepare(workers=1)
        file.write_text(FILE.replace("weight: 2}", "weigth: 2}"))
        with pytest.raises(bootstrap.StartRefused, match=rf"^AILB_CONFIG: {re.escape(str(file))}:11: deployments\[1\]"):
            bootstrap.prepare(workers=1)
    # Without the setting nothing is taken to be gone.
    with override_settings(ENV=Env.model_construct(**Env().model_dump())):
        bootstrap.prepare(workers=1)
    assert Deployment.objects.filter(enabled=True, managed_by="file").count() == 2


def test_the_file_of_the_documentation_can_be_applied(file: Path, monkeypatch: pytest.MonkeyPatch):
    (text,) = re.findall(r"```yaml\n(providers:.*?)```", DOCS.read_text(), re.DOTALL)
    for name in re.findall(r"\$\{(\w+)\}", text):
        monkeypatch.setenv(name, SECRET)
    sections = set(re.findall(r"^(\w+):", text, re.MULTILINE))
    assert sections == {section.name for section in config_file.SECTIONS}
    assert run(file, text, "--plan")
