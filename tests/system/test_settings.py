"""Wrong settings stop the start with one line that names the setting, what it got and what it takes."""

import base64

import pytest

from ailb_project import env as environment
from ailb_project.env import Env, SettingsError
from tests.support.serving import SECRETS, clean_environment, manage

WRONG = [
    ("HTTP_PORT", "eighty"),
    ("HTTP_PORT", "0"),
    ("HTTP_PORT", "65536"),
    ("GRPC_PORT", "-1"),
    ("OPENAI_BASE_URL", "api.openai.com/v1"),
    ("ROUTING_STRATEGY", "fastest"),
    ("ENABLE_MEMORY", "perhaps"),
    ("DATABASE_URL", "mysql://root@localhost/ailb"),
    ("REDIS_URL", "localhost:6379"),
    ("AILB_ENCRYPTION_KEYS", "not-a-fernet-key"),
    ("AILB_ADMIN_KEY", "too-short"),
    ("AILB_UNPRICED", "maybe"),
    ("AILB_LOG_LEVEL", "loud"),
    ("AILB_SHUTDOWN_SECONDS", "-1"),
    ("AILB_DATABASE_GRACE_SECONDS", "long"),
    ("MODULE_ID", "x" * 101),
    ("AILB_EMAIL_URL", "https://user:secret@mail.example.com"),
    ("AILB_EMAIL_URL", "smtp://mail.example.com:port"),
    ("AILB_EMAIL_URL", "smtp://mail.example.com/inbox"),
    ("AILB_EMAIL_FROM", "nobody"),
    ("AILB_ALERT_EMAILS", "ops"),
]
SECRET = {"DATABASE_URL", "REDIS_URL", "AILB_ENCRYPTION_KEYS", "AILB_ADMIN_KEY", "AILB_EMAIL_URL"}


@pytest.fixture(autouse=True)
def _only_these(monkeypatch, tmp_path):
    """The environment of a test is its own."""
    for name in list(clean_environment()):
        monkeypatch.setenv(name, clean_environment()[name])
    for name in Env.model_fields:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(f"{name}_FILE", raising=False)
    monkeypatch.setenv("AILB_DATA_DIR", str(tmp_path / "data"))


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_the_line_names_the_setting_what_it_got_and_what_it_takes(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError) as caught:
        environment.load()
    line = str(caught.value)
    assert line.startswith(f"{name}: got ")
    assert "; takes " in line
    assert "\n" not in line
    if name in SECRET:
        assert value not in line
    else:
        assert value[:20] in line


@pytest.mark.parametrize(
    ("name", "value"), [("HTTP_PORT", "eighty"), ("DATABASE_URL", "mysql://root:secret@localhost/ailb")]
)
def test_the_start_says_it_and_nothing_else(tmp_path, name, value):
    done = manage("serve", settings={"AILB_DATA_DIR": str(tmp_path / "data"), name: value})
    assert done.returncode != 0
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"ailb: {name}: got ")
    assert "secret" not in done.stderr


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    done = manage("serve", settings={"AILB_DATA_DIR": str(tmp_path / "file" / "data")})
    assert done.returncode != 0
    (line,) = done.stderr.splitlines()
    assert line.startswith("ailb: AILB_DATA_DIR: got ")


@pytest.mark.parametrize("missing", SECRETS)
def test_with_postgresql_a_missing_secret_is_refused_and_not_made(monkeypatch, tmp_path, missing):
    monkeypatch.setenv("DATABASE_URL", "postgres://user:pass@127.0.0.1/ailb")
    for name, value in SECRETS.items():
        if name != missing:
            monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=rf"^{missing}: got nothing; takes the same value on every host"):
        environment.load()
    assert not (tmp_path / "data").exists()


class TestSecretFiles:
    def test_a_secret_may_come_as_a_file(self, monkeypatch, tmp_path):
        (tmp_path / "key").write_text("sk-from-a-file\n")
        monkeypatch.setenv("OPENAI_API_KEY_FILE", str(tmp_path / "key"))
        found = environment.load().OPENAI_API_KEY
        assert found is not None
        assert found.get_secret_value() == "sk-from-a-file"

    def test_the_variable_itself_goes_first(self, monkeypatch, tmp_path):
        (tmp_path / "key").write_text("sk-from-a-file")
        monkeypatch.setenv("OPENAI_API_KEY_FILE", str(tmp_path / "key"))
        monkeypatch.setenv("OPENAI_API_KEY", "sk-direct")
        found = environment.load().OPENAI_API_KEY
        assert found is not None
        assert found.get_secret_value() == "sk-direct"

    def test_a_file_that_is_not_there_is_named(self, monkeypatch, tmp_path):
        monkeypatch.setenv("AILB_ADMIN_KEY_FILE", str(tmp_path / "nowhere"))
        with pytest.raises(SettingsError, match=r"^AILB_ADMIN_KEY_FILE: cannot read"):
            environment.load()

    def test_only_secrets_have_one(self, monkeypatch, tmp_path):
        (tmp_path / "port").write_text("1")
        monkeypatch.setenv("HTTP_PORT_FILE", str(tmp_path / "port"))
        assert environment.load().HTTP_PORT == 8080


class TestValues:
    def test_an_empty_variable_is_none(self, monkeypatch):
        for name in ("HTTP_PORT", "OPENAI_API_KEY", "DATABASE_URL", "OPENAI_BASE_URL", "AILB_ADMIN_KEY"):
            monkeypatch.setenv(name, "")
        found = environment.load()
        assert (found.HTTP_PORT, found.OPENAI_API_KEY, found.DATABASE_URL) == (8080, None, None)

    def test_lists_are_split_at_commas(self, monkeypatch):
        monkeypatch.setenv("OPENAI_MODELS", " gpt-4o, gpt-4o-mini ,,")
        monkeypatch.setenv("AILB_ALLOWED_HOSTS", "example.com")
        found = environment.load()
        assert found.OPENAI_MODELS == ("gpt-4o", "gpt-4o-mini")
        assert found.AILB_ALLOWED_HOSTS == ("example.com",)

    def test_a_base_urls_last_slash_makes_no_difference(self, monkeypatch):
        monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:8000/v1/")
        assert environment.load().OPENAI_BASE_URL == "http://127.0.0.1:8000/v1"

    def test_several_encryption_keys(self, monkeypatch):
        keys = [base64.urlsafe_b64encode(bytes([n]) * 32).decode() for n in range(2)]
        monkeypatch.setenv("AILB_ENCRYPTION_KEYS", ", ".join(keys))
        assert environment.encryption_keys(environment.load()) == keys

    def test_no_secret_is_shown_by_accident(self, monkeypatch):
        monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret")
        monkeypatch.setenv("DATABASE_URL", "postgres://user:very-secret@127.0.0.1/ailb")
        for name, value in SECRETS.items():
            monkeypatch.setenv(name, value)
        found = environment.load()
        assert "very-secret" not in f"{found!r} {found}"

    def test_generated_secrets_last(self):
        first, second = environment.load(), environment.load()
        for name in SECRETS:
            assert getattr(first, name) == getattr(second, name)
            assert len(getattr(first, name).get_secret_value()) >= 32

    def test_an_emptied_secret_file_stops_the_start(self, tmp_path):
        environment.load()
        (tmp_path / "data" / "key_pepper").write_text("")
        with pytest.raises(SettingsError, match=r"^AILB_KEY_PEPPER: got an empty file"):
            environment.load()


@pytest.mark.parametrize(
    ("url", "host", "port", "user", "password", "starttls", "tls"),
    [
        ("smtp://localhost", "localhost", 25, "", "", False, False),
        ("smtp://127.0.0.1:1025", "127.0.0.1", 1025, "", "", False, False),
        ("smtp+tls://ops:p%40ss@mail.example.com", "mail.example.com", 587, "ops", "p@ss", True, False),
        ("smtps://ops:pass@mail.example.com", "mail.example.com", 465, "ops", "pass", False, True),
    ],
)
def test_the_mail_servers_url(url, host, port, user, password, starttls, tls):
    assert environment.mail_server(url) == {
        "EMAIL_HOST": host, "EMAIL_PORT": port, "EMAIL_HOST_USER": user, "EMAIL_HOST_PASSWORD": password,
        "EMAIL_USE_TLS": starttls, "EMAIL_USE_SSL": tls,
    }  # fmt: skip


def test_addresses_without_a_server_would_wait_in_vain(monkeypatch):
    monkeypatch.setenv("AILB_ALERT_EMAILS", "ops@example.com, finance@example.com")
    with pytest.raises(SettingsError, match=r"^AILB_EMAIL_URL: got nothing; takes smtp://host:port"):
        environment.load()
    monkeypatch.setenv("AILB_EMAIL_URL", "smtp://localhost")
    assert environment.load().AILB_ALERT_EMAILS == ("ops@example.com", "finance@example.com")
