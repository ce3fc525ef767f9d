"""Models that a server has become deployments; what is gone is disabled; a server that is down changes nothing."""

import time

import pytest
import structlog
from django.test import Client
from django.urls import reverse
from pydantic import SecretStr

from ailb_project import env as settings_of
from ailb_project.env import Env, SettingsError
from gateway import discovery, environment, tasks, vault
from gateway.errors import UpstreamError, UpstreamTimeout
from gateway.models import Deployment, Provider
from keys.actors import SYSTEM
from keys.models import User
from security.models import AuditEntry
from tests.support.upstream import answers, hangs
from tests.support.world import make_deployment, make_provider

pytestmark = pytest.mark.usefixtures("committed")

NOWHERE = "http://127.0.0.1:1"


@pytest.fixture(autouse=True)
def _nothing_watched(monkeypatch):
    monkeypatch.setattr(discovery, "watch", discovery.Watch())


@pytest.fixture
def has(upstream):
    """Says which models the server has."""

    def models(*names):
        upstream.always(answers({"models": [{"name": name, "model": name} for name in names]}))

    return models


def env(**values):
    return Env.model_construct(**{**Env().model_dump(), **values})


def ollama(url, *models):
    return env(OLLAMA_BASE_URL=url, OLLAMA_MODELS=models)


def served():
    return set(Deployment.objects.filter(enabled=True, provider__enabled=True).values_list("name", flat=True))


# ── the environment's ───────────────────────────────────────────────────────────────────────────────────────────────


class TestAtTheStart:
    def test_models_that_are_named_need_no_server(self):
        environment.apply(env(OLLAMA_MODELS=("llama3.2",)))
        assert served() == {"llama3.2"}
        assert Provider.objects.get(slug="ollama").base_url == "", "the vendor's own"

    def test_models_that_are_named_are_not_asked_for(self, upstream, has):
        has("other:latest")
        environment.apply(ollama(upstream.url.removesuffix("/v1"), "llama3.2"))
        assert served() == {"llama3.2"}
        assert upstream.requests == []

    def test_with_none_named_they_are_those_that_the_server_has(self, upstream, has):
        has("llama3.2:latest", "qwen3:8b")
        environment.apply(ollama(upstream.url.removesuffix("/v1")))
        assert served() == {"llama3.2:latest", "qwen3:8b"}
        deployment = Deployment.objects.get(name="qwen3:8b")
        assert (deployment.managed_by, deployment.context_window) == ("environment", None)

    def test_it_needs_no_key_and_where_it_is_says_that_it_is(self, upstream, has):
        has("a")
        environment.apply(ollama(upstream.url.removesuffix("/v1")))
        provider = Provider.objects.get(slug="ollama")
        assert (provider.enabled, provider.credentials) == (True, "")
        environment.apply(env())
        assert served() == {"ailb-demo"}
        assert not Provider.objects.get(slug="ollama").enabled

    def test_a_server_that_is_down_keeps_what_is_known_and_is_told_once(self, upstream, has):
        has("a", "b")
        environment.apply(ollama(upstream.url.removesuffix("/v1")))
        with structlog.testing.capture_logs() as logs:
            environment.apply(ollama(NOWHERE))
        assert served() == {"a", "b"}
        assert [(entry["event"], entry["log_level"]) for entry in logs] == [("models_not_discovered", "warning")]

    def test_a_first_start_with_a_server_that_is_down_has_the_demo(self, upstream, has):
        environment.apply(ollama(NOWHERE))
        assert served() == {"ailb-demo"}
        has("a")
        environment.apply(ollama(upstream.url.removesuffix("/v1")))
        assert served() == {"a"}

    def test_a_model_that_is_gone_is_disabled_and_comes_back(self, upstream, has):
        has("a", "b")
        environment.apply(ollama(upstream.url.removesuffix("/v1")))
        has("a")
        environment.apply(ollama(upstream.url.removesuffix("/v1")))
        assert served() == {"a"}
        assert Deployment.objects.filter(name="b", enabled=False).exists()
        has("a", "b")
        environment.apply(ollama(upstream.url.removesuffix("/v1")))
        assert served() == {"a", "b"}
        assert Deployment.objects.filter(provider__slug="ollama").count() == 2

    def test_again_it_changes_nothing(self, upstream, has):
        has("a", "b", "a")
        environment.apply(ollama(upstream.url.removesuffix("/v1")))
        before = AuditEntry.objects.count()
        environment.apply(ollama(upstream.url.removesuffix("/v1")))
        assert AuditEntry.objects.count() == before

    def test_the_consoles_provider_of_that_name_is_not_asked(self, upstream, has):
        has("a")
        make_deployment(make_provider(NOWHERE, slug="ollama", kind="ollama"), "mine")
        environment.apply(ollama(upstream.url.removesuffix("/v1")))
        assert served() == {"mine"}
        assert upstream.requests == []

    def test_names_that_no_deployment_can_have_are_left_out(self, upstream, has):
        has("a", "two words", "x" * 201)
        environment.apply(ollama(upstream.url.removesuffix("/v1")))
        assert served() == {"a"}


class TestAnthropic:
    def test_it_is_defined_as_openai_is(self):
        environment.apply(env(ANTHROPIC_API_KEY=SecretStr("sk-ant-x"), ANTHROPIC_MODELS=("claude-sonnet-4-5",)))
        assert served() == {"claude-sonnet-4-5"}
        provider = Provider.objects.get(slug="anthropic")
        assert provider.base_url == "https://api.anthropic.com"
        assert vault.open_sealed(provider.credentials)["api_key"] == "sk-ant-x"

    def test_a_key_without_models_is_told(self):
        with structlog.testing.capture_logs() as logs:
            environment.apply(env(ANTHROPIC_API_KEY=SecretStr("sk-ant-x")))
        assert [entry["hint"] for entry in logs] == ["ANTHROPIC_MODELS names the models it serves"]


class TestEachMinute:
    def test_a_model_that_was_pulled_is_served_and_the_demo_goes(self, upstream, has, settings):
        settings.ENV = ollama(upstream.url.removesuffix("/v1"))
        has()
        environment.apply(settings.ENV)
        assert served() == {"ailb-demo"}
        has("a")
        tasks.discover_models()
        assert served() == {"a"}

    def test_a_server_that_is_down_is_told_once_and_its_return_too(self, upstream, has):
        has("a")
        environment.apply(ollama(upstream.url.removesuffix("/v1")))
        with structlog.testing.capture_logs() as logs:
            for script in (answers({}, 500), answers({}, 500), answers({"models": []}), answers({}, 500)):
                upstream.always(script)
                environment.rediscover(ollama(upstream.url.removesuffix("/v1")))
        events = [entry["event"] for entry in logs]
        assert events == ["models_not_discovered", "models_discovered_again", "models_not_discovered"]

    def test_nothing_is_asked_where_models_are_named_or_nothing_is_defined(self, upstream, has):
        has("a")
        environment.apply(ollama(upstream.url.removesuffix("/v1"), "b"))
        environment.rediscover(ollama(upstream.url.removesuffix("/v1"), "b"))
        environment.rediscover(env())
        assert upstream.requests == []
        assert served() == {"b"}

    def test_a_minute_without_news_writes_nothing(self, upstream, has):
        has("a")
        environment.apply(ollama(upstream.url.removesuffix("/v1")))
        before = AuditEntry.objects.count()
        environment.rediscover(ollama(upstream.url.removesuffix("/v1")))
        assert AuditEntry.objects.count() == before


# ── the console's ───────────────────────────────────────────────────────────────────────────────────────────────────


class TestAProviderOfTheConsole:
    @pytest.fixture
    def provider(self, upstream):
        return make_provider(upstream.url.removesuffix("/v1"), slug="local", kind="ollama")

    def test_what_is_missing_is_added_and_may_be_changed(self, provider, has, upstream):
        has("a", "b")
        assert discovery.discover(provider, SYSTEM) == ["a", "b"]
        assert served() == {"a", "b"}
        assert set(Deployment.objects.values_list("managed_by", flat=True)) == {""}
        assert upstream.only.headers["authorization"].startswith("Bearer ")

    def test_what_people_made_stays_as_it_is(self, provider, has):
        make_deployment(provider, "mine", "llama3.2", weight=7)
        make_deployment(provider, "off", "qwen3:8b", enabled=False)
        has("llama3.2:latest", "qwen3:8b")
        discovery.discover(provider, SYSTEM)
        assert served() == {"mine"}
        assert Deployment.objects.get(name="mine").weight == 7
        assert Deployment.objects.count() == 2

    def test_what_is_gone_is_disabled_and_not_deleted(self, provider, has):
        make_deployment(provider, "mine", "gone:1b")
        has("a")
        discovery.discover(provider, SYSTEM)
        assert served() == {"a"}
        assert Deployment.objects.filter(name="mine", enabled=False).exists()

    def test_a_name_that_is_taken_gets_the_providers_in_front(self, provider, has):
        make_deployment(make_provider(NOWHERE, slug="other"), "a")
        has("a")
        discovery.discover(provider, SYSTEM)
        assert served() == {"a", "local/a"}

    def test_each_change_is_audited_under_who_asked(self, provider, has):
        has("a")
        discovery.discover(provider, SYSTEM)
        entry = AuditEntry.objects.get(object_type="gateway.deployment")
        assert (entry.action, entry.actor) == ("create", "system")

    def test_a_server_that_is_down_changes_nothing(self, provider, has, upstream):
        make_deployment(provider, "mine", "a")
        upstream.always(answers({}, 500))
        with pytest.raises(UpstreamError):
            discovery.discover(provider, SYSTEM)
        assert served() == {"mine"}

    def test_a_server_that_says_nothing_is_given_up(self, provider, upstream, monkeypatch):
        monkeypatch.setattr(discovery, "SECONDS", 0.2)
        upstream.always(hangs())
        started = time.monotonic()
        with pytest.raises(UpstreamTimeout):
            discovery.discover(provider, SYSTEM)
        assert time.monotonic() - started < 5

    def test_one_that_was_deleted_meanwhile_gets_none(self, provider, has):
        has("a")
        Provider.objects.all().delete()
        discovery.discover(provider, SYSTEM)
        assert not Deployment.objects.exists()

    def test_kinds_that_cannot_be_asked_are_not(self):
        assert [kind for kind in ("openai", "demo", "ollama", "nobody") if discovery.can_discover(kind)] == ["ollama"]
        with pytest.raises(discovery.NotDiscoverable):
            discovery.discover(make_provider(NOWHERE), SYSTEM)

    def test_credentials_that_no_key_opens_are_not_sent(self, provider, upstream):
        provider.credentials = "gibberish"
        with pytest.raises(discovery.NotDiscoverable):
            discovery.discover(provider, SYSTEM)
        assert upstream.requests == []


class TestTheConsolesAction:
    @pytest.fixture
    def press(self):
        """Choose these providers, press "Discover models"; what the page then says."""
        client = Client()
        client.force_login(User.objects.create_superuser("ada", "a password of Ada's"))

        def pressed(*providers):
            chosen = {"action": "discover", "_selected_action": [provider.pk for provider in providers]}
            page = client.post(reverse("admin:gateway_provider_changelist"), chosen, follow=True)
            return [str(message) for message in page.context["messages"]]

        return pressed

    def test_it_says_what_was_found(self, upstream, has, press):
        has("a", "b")
        provider = make_provider(upstream.url.removesuffix("/v1"), slug="local", kind="ollama")
        assert press(provider) == ["local: 2 models: a, b"]
        assert served() == {"a", "b"}
        assert {e.actor for e in AuditEntry.objects.filter(object_type="gateway.deployment")} == {"user:ada"}

    def test_it_says_why_nothing_was(self, upstream, has, press):
        upstream.always(answers({"error": "out of order"}, 500))
        cloud = make_provider(NOWHERE, slug="cloud")
        down = make_provider(NOWHERE, slug="down", kind="ollama")
        local = make_provider(upstream.url.removesuffix("/v1"), slug="local", kind="ollama")
        sealed = make_provider(upstream.url.removesuffix("/v1"), slug="sealed", kind="ollama")
        Provider.objects.filter(pk=sealed.pk).update(credentials="gibberish")
        assert press(cloud, down, local, sealed) == [
            "cloud: a provider of its kind cannot be asked for its models.",
            "down: The provider could not be reached.",
            "local: The provider answered with status 500.",
            "sealed: its credentials cannot be opened.",
        ]

    def test_the_environments_is_asked_unless_the_environment_names_its_models(self, upstream, has, press, settings):
        has("a")
        settings.ENV = ollama(upstream.url.removesuffix("/v1"))
        environment.apply(settings.ENV)
        has("a", "b")
        provider = Provider.objects.get(slug="ollama")
        assert press(provider) == ["ollama: 2 models: a, b"]
        settings.ENV = ollama(upstream.url.removesuffix("/v1"), "c")
        environment.apply(settings.ENV)
        assert press(provider) == ["ollama: its models are defined elsewhere."]
        assert served() == {"c"}


class TestSettings:
    @pytest.fixture(autouse=True)
    def _only_these(self, monkeypatch, tmp_path):
        for name in Env.model_fields:
            monkeypatch.delenv(name, raising=False)
            monkeypatch.delenv(f"{name}_FILE", raising=False)
        monkeypatch.setenv("AILB_DATA_DIR", str(tmp_path / "data"))

    @pytest.mark.parametrize(
        ("name", "value", "takes"),
        [
            ("ANTHROPIC_BASE_URL", "https://api.anthropic.com/v1", "the URL without /v1 at its end"),
            ("ANTHROPIC_BASE_URL", "https://api.anthropic.com/v1/", "the URL without /v1 at its end"),
            ("ANTHROPIC_BASE_URL", "api.anthropic.com", "a URL that begins with http:// or https://"),
            ("OLLAMA_BASE_URL", "http://127.0.0.1:11434/v1", "the URL without /v1 at its end"),
            ("OLLAMA_BASE_URL", "http://127.0.0.1:11434/api/", "the URL without /api at its end"),
            ("OLLAMA_BASE_URL", "127.0.0.1:11434", "a URL that begins with http:// or https://"),
        ],
    )
    def test_a_wrong_base_url_stops_the_start_with_one_line(self, monkeypatch, name, value, takes):
        monkeypatch.setenv(name, value)
        with pytest.raises(SettingsError) as caught:
            settings_of.load()
        assert str(caught.value) == f"{name}: got {value!r}; takes {takes}"

    def test_base_urls_lose_their_last_slash_and_models_are_split(self, monkeypatch):
        monkeypatch.setenv("ANTHROPIC_BASE_URL", "https://openrouter.ai/api/")
        monkeypatch.setenv("OLLAMA_BASE_URL", "http://127.0.0.1:11434/")
        monkeypatch.setenv("ANTHROPIC_MODELS", "a, b")
        monkeypatch.setenv("OLLAMA_MODELS", "llama3.2,")
        found = settings_of.load()
        assert (found.ANTHROPIC_BASE_URL, found.OLLAMA_BASE_URL) == (
            "https://openrouter.ai/api",
            "http://127.0.0.1:11434",
        )
        assert (found.ANTHROPIC_MODELS, found.OLLAMA_MODELS) == (("a", "b"), ("llama3.2",))
