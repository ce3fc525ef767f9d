"""Providers that the environment defines, and what a first start makes."""

import os
import stat

import pytest
from cryptography.fernet import Fernet
from pydantic import SecretStr

from ailb_project.env import Env
from gateway import environment, first_run, vault
from gateway.models import Deployment, Provider
from keys import authentication
from keys.models import User, VirtualKey
from security.models import AuditEntry
from tests.support.world import make_deployment, make_provider

pytestmark = pytest.mark.usefixtures("committed")


def env(**values):
    return Env.model_construct(**{**Env().model_dump(), **values})


def openai(*models, key="sk-the-environments-key", url="https://api.openai.com/v1"):
    return env(OPENAI_API_KEY=SecretStr(key) if key else None, OPENAI_MODELS=tuple(models), OPENAI_BASE_URL=url)


def served():
    return set(Deployment.objects.filter(enabled=True, provider__enabled=True).values_list("name", flat=True))


class TestApply:
    def test_with_nothing_there_is_the_demo(self):
        environment.apply(env())
        assert served() == {"ailb-demo"}

    def test_a_provider_of_the_environment_takes_its_place(self):
        environment.apply(env())
        environment.apply(openai("gpt-4o", "gpt-4o-mini"))
        assert served() == {"gpt-4o", "gpt-4o-mini"}
        provider = Provider.objects.get(slug="openai")
        assert provider.managed_by == "environment"
        assert vault.open_sealed(provider.credentials)["api_key"] == "sk-the-environments-key"
        assert "sk-the-environments-key" not in provider.credentials

    def test_again_it_changes_nothing(self):
        environment.apply(openai("gpt-4o"))
        before = (Provider.objects.get(slug="openai").credentials, AuditEntry.objects.count())
        environment.apply(openai("gpt-4o"))
        assert (Provider.objects.get(slug="openai").credentials, AuditEntry.objects.count()) == before

    def test_a_changed_key_is_taken(self):
        environment.apply(openai("gpt-4o"))
        environment.apply(openai("gpt-4o", key="sk-newer"))
        assert vault.open_sealed(Provider.objects.get(slug="openai").credentials)["api_key"] == "sk-newer"

    def test_what_has_gone_is_disabled_and_not_deleted(self):
        environment.apply(openai("gpt-4o", "gpt-4o-mini"))
        environment.apply(openai("gpt-4o"))
        assert served() == {"gpt-4o"}
        assert Deployment.objects.filter(name="gpt-4o-mini", enabled=False).exists()
        environment.apply(env())
        assert served() == {"ailb-demo"}
        assert Provider.objects.filter(slug="openai", enabled=False).exists()
        environment.apply(openai("gpt-4o-mini"))
        assert served() == {"gpt-4o-mini"}

    def test_the_consoles_provider_of_that_name_is_left_alone(self):
        make_deployment(make_provider("http://127.0.0.1:1/v1", slug="openai"), "mine")
        environment.apply(openai("gpt-4o"))
        assert served() == {"mine"}
        assert Provider.objects.get(slug="openai").managed_by == ""

    def test_a_name_that_is_taken_gets_the_providers_in_front(self):
        make_deployment(make_provider("http://127.0.0.1:1/v1", slug="mine"), "gpt-4o")
        environment.apply(openai("gpt-4o"))
        assert served() == {"gpt-4o", "openai/gpt-4o"}
        environment.apply(openai("gpt-4o"))
        assert Deployment.objects.count() == 2 + Deployment.objects.filter(name="ailb-demo").count()

    def test_the_demo_stays_away_where_something_is_served(self):
        make_deployment(make_provider("http://127.0.0.1:1/v1", slug="mine"), "mine")
        environment.apply(env())
        assert served() == {"mine"}

    def test_a_model_named_twice_is_one(self):
        environment.apply(openai("gpt-4o", "gpt-4o"))
        assert Deployment.objects.filter(provider__slug="openai").count() == 1

    def test_it_is_audited_without_the_credential(self):
        environment.apply(openai("gpt-4o"))
        entries = AuditEntry.objects.filter(object_type="gateway.provider")
        assert entries.exists()
        assert "sk-the-environments-key" not in str(list(entries.values()))


class TestFirstRun:
    @pytest.fixture(autouse=True)
    def _served(self, committed):
        environment.apply(env())

    def test_it_makes_a_login_an_admin_key_and_a_first_key(self):
        text = first_run.prepare(env())
        admin = User.objects.get()
        assert admin.role == "admin"
        assert admin.must_change_password
        assert set(VirtualKey.objects.values_list("role", flat=True)) == {"admin", "member"}
        assert "/v1/chat/completions" in text
        assert "ailb-demo" in text

    def test_what_it_shows_works(self, settings):
        text = first_run.prepare(env())
        lines = dict(
            line.split(":", 1) for line in text.splitlines() if ":" in line and not line.startswith(("curl", "Try"))
        )
        password = lines["Login"].split("/")[1].split()[0]
        assert User.objects.get().check_password(password)
        credentials = authentication.load()
        for name, role in (("Admin key", "admin"), ("Virtual key", "member")):
            secret = lines[name].strip()
            caller = authentication.authenticate(credentials, secret, pepper=settings.KEY_PEPPER, now=0)
            assert caller.role == role

    def test_a_second_start_shows_nothing_and_makes_nothing(self):
        first_run.prepare(env())
        assert first_run.prepare(env()) is None
        assert (User.objects.count(), VirtualKey.objects.count()) == (1, 2)

    def test_a_given_admin_key_is_taken_and_not_shown(self, settings):
        given = "an-admin-key-of-24-characters"
        text = first_run.prepare(env(AILB_ADMIN_KEY=SecretStr(given)))
        assert given not in text
        assert given not in str(list(VirtualKey.objects.values()))
        caller = authentication.authenticate(authentication.load(), given, pepper=settings.KEY_PEPPER, now=0)
        assert caller.role == "admin"

    def test_changing_the_variable_replaces_it_and_taking_it_away_ends_it(self, settings):
        first, second = "an-admin-key-of-24-characters", "another-key-of-24-characters!"
        for given in (first, second):
            first_run.prepare(env(AILB_ADMIN_KEY=SecretStr(given)))

        def status(secret):
            try:
                authentication.authenticate(authentication.load(), secret, pepper=settings.KEY_PEPPER, now=9e9)
            except Exception as error:  # noqa: BLE001  # its class is what is asked
                return type(error).__name__
            return "ok"

        assert [status(first), status(second)] == ["AuthenticationFailed", "ok"]
        first_run.prepare(env())
        assert status(second) == "KeyExpired"
        first_run.prepare(env(AILB_ADMIN_KEY=SecretStr(second)))
        assert status(second) == "ok"

    def test_secrets_go_to_a_file_that_its_owner_alone_reads(self, tmp_path, capsys):
        umask = os.umask(0)
        try:
            first_run.show("the secrets", tmp_path)
        finally:
            os.umask(umask)
        path = tmp_path / "first-run.txt"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert path.read_text() == "the secrets"
        assert "the secrets" not in capsys.readouterr().out

    def test_an_older_file_of_another_mode_is_closed_to_others(self, tmp_path):
        path = tmp_path / "first-run.txt"
        path.write_text("x" * 1000)
        path.chmod(0o644)
        first_run.show("the secrets", tmp_path)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert path.read_text() == "the secrets"

    def test_on_a_terminal_they_are_shown_and_not_kept(self, tmp_path, monkeypatch, capsys):
        monkeypatch.setattr("sys.stdout.isatty", lambda: True)
        first_run.show("the secrets", tmp_path)
        assert "the secrets" in capsys.readouterr().out
        assert not (tmp_path / "first-run.txt").exists()


class TestTheVault:
    def test_what_is_sealed_is_opened_again(self):
        assert vault.open_sealed(vault.seal({"api_key": "sk-ü", "headers": {}})) == {"api_key": "sk-ü", "headers": {}}
        assert vault.open_sealed("") == {}

    def test_what_others_sealed_is_not(self):
        with pytest.raises(vault.VaultError):
            vault.open_sealed("gAAAAA-not-ours")

    def test_an_older_key_still_opens_and_the_newest_seals(self, settings):
        old, new = Fernet.generate_key().decode(), Fernet.generate_key().decode()
        settings.ENCRYPTION_KEYS = [old]
        sealed = vault.seal({"api_key": "x"})
        settings.ENCRYPTION_KEYS = [new, old]
        assert vault.open_sealed(sealed) == {"api_key": "x"}
        again = vault.seal({"api_key": "x"})
        settings.ENCRYPTION_KEYS = [new]
        assert vault.open_sealed(again) == {"api_key": "x"}
        with pytest.raises(vault.VaultError):
            vault.open_sealed(sealed)
