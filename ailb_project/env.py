"""Every setting of the gateway: one typed, described field each, read once at start.

`docs/configuration.md` is generated from the descriptions (a test compares them), and a wrong value stops the start
with one line that names the setting, what it got and what it takes. Any secret `NAME` may come as `NAME_FILE`.
"""

import os
import re
import secrets
import stat
from pathlib import Path
from typing import Annotated, Any, Literal, get_args
from urllib.parse import unquote, urlsplit

import dj_database_url
from cryptography.fernet import Fernet
from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

Strategy = Literal["load_balanced", "round_robin", "cost_optimized", "latency_optimized", "failover", "random"]
STRATEGIES = get_args(Strategy)
CommaSeparated = Annotated[tuple[str, ...], NoDecode]


class SettingsError(Exception):
    """A setting stops the start; the message is the one line that the operator reads."""


class Env(BaseSettings):
    """The environment, by the names of the contract (http-api.md section 1)."""

    model_config = SettingsConfigDict(extra="ignore", case_sensitive=True, env_ignore_empty=True)

    HOST: str = Field("127.0.0.1", description="Address that HTTP and gRPC listen on; the container image sets 0.0.0.0")
    HTTP_PORT: int = Field(8080, ge=1, le=65535, description="Port of the HTTP server")
    GRPC_PORT: int = Field(50051, ge=1, le=65535, description="Port of the gRPC server")
    MODULE_ID: str = Field("ailb-1", min_length=1, max_length=100, description="Name of this module towards MarchProxy")

    OPENAI_API_KEY: SecretStr | None = Field(None, description="Credential of the environment's `openai` provider")
    OPENAI_BASE_URL: str = Field("https://api.openai.com/v1", description="Where it is; ends in /v1")
    OPENAI_MODELS: CommaSeparated = Field((), description="Comma-separated models that it serves")

    ANTHROPIC_API_KEY: SecretStr | None = Field(
        None, description="Credential of the environment's `anthropic` provider"
    )
    ANTHROPIC_BASE_URL: str = Field(
        "https://api.anthropic.com", description="Where it is; without /v1, as Anthropic's SDK takes it"
    )
    ANTHROPIC_MODELS: CommaSeparated = Field((), description="Comma-separated models that it serves")

    OLLAMA_BASE_URL: str | None = Field(
        None,
        description="Where the environment's `ollama` provider is, without /api or /v1; with OLLAMA_MODELS alone "
        "http://127.0.0.1:11434",
    )
    OLLAMA_MODELS: CommaSeparated = Field(
        (),
        description="Comma-separated models that it serves; none named: all that it has, asked each minute",
    )

    AILB_CONFIG: Path | None = Field(
        None,
        description="A YAML file that defines providers, deployments, groups, weights, teams, keys, limits, "
        "budgets and policies, applied at each start (config-file.md)",
    )

    ROUTING_STRATEGY: Strategy = Field("load_balanced", description="Order in which deployments of a model are tried")
    ENABLE_MEMORY: bool = Field(True, description="`session_id` gives a conversation memory")
    ENABLE_RAG: bool = Field(True, description="`rag_collection` adds passages of a collection")

    DATABASE_URL: SecretStr | None = Field(
        None, description="postgres://…; default: SQLite in AILB_DATA_DIR (one gateway process)"
    )
    REDIS_URL: SecretStr | None = Field(
        None, description="redis://…: counters shared by several gateway processes; default: in process"
    )
    AILB_DATA_DIR: Path = Field(Path("./var"), description="Folder for everything that must outlive a restart")
    AILB_SECRET_KEY: SecretStr | None = Field(None, description="Django's signing key; generated with SQLite")
    AILB_KEY_PEPPER: SecretStr | None = Field(None, description="HMAC key of virtual keys; generated with SQLite")
    AILB_ENCRYPTION_KEYS: SecretStr | None = Field(
        None, description="Comma-separated Fernet keys of stored credentials, newest first; generated with SQLite"
    )
    AILB_ADMIN_KEY: SecretStr | None = Field(
        None, description="A bearer key with the admin role, 24 characters or more; generated on the first start"
    )
    AILB_ALLOWED_HOSTS: CommaSeparated = Field(
        ("localhost", "127.0.0.1", "[::1]"),
        description="Comma-separated host names that Django answers to",
    )
    AILB_CSRF_ORIGINS: CommaSeparated = Field(
        (),
        description="Comma-separated origins that may post to the console, such as https://ailb.example.com; where "
        "all are https, cookies are sent by TLS alone and browsers are told to stay with it",
    )
    AILB_HSTS_SECONDS: int = Field(
        86400,
        ge=0,
        description="How long browsers remember to come by https alone, where all of AILB_CSRF_ORIGINS are https; it "
        "holds for every port of the host",
    )
    AILB_LOGIN_FAILURES: int = Field(
        10,
        ge=1,
        description="Wrong console passwords for one account from one address before it is refused for a while; from "
        "all addresses together ten times as many",
    )
    AILB_LOGIN_LOCK_SECONDS: int = Field(900, ge=1, description="How long each of these failures counts")
    AILB_CORS_ORIGINS: CommaSeparated = Field((), description="Comma-separated origins of browsers that may call /v1")
    AILB_METRICS_TOKEN: SecretStr | None = Field(
        None, description="Bearer token of /metrics for callers that are not on loopback"
    )
    AILB_EMAIL_URL: SecretStr | None = Field(
        None,
        description="smtp://user:password@host:port, smtp+tls://… (STARTTLS) or smtps://… (TLS): the server that sends "
        "alerts by e-mail; without it none are sent",
    )
    AILB_EMAIL_FROM: str = Field("ailb@localhost", description="Sender of e-mails")
    AILB_ALERT_EMAILS: CommaSeparated = Field(
        (), description="Comma-separated addresses that alerts are sent to, by AILB_EMAIL_URL"
    )
    AILB_UNPRICED: Literal["block", "allow"] = Field(
        "block", description="A model without a price under a dollar budget: refused with 402, or served"
    )
    AILB_UNSUPPORTED_PARAMETERS: Literal["drop", "refuse"] = Field(
        "drop",
        description="A parameter that the upstream's dialect cannot express and that only changes an answer's odds: "
        "left out and named in x-ailb-dropped-parameters, or refused with 400",
    )
    AILB_DEMO: Literal["auto", "echo"] = Field(
        "auto", description="What `ailb-demo` is: a small model where its packages are installed, or always an echo"
    )
    AILB_BUDGETS_WITHOUT_REDIS: Literal["lease", "refuse"] = Field(
        "lease",
        description="Requests under a budget while Redis is away: served of what their process has leased of it, with "
        "503 once that is used up, or all refused with 503",
    )
    AILB_DATABASE_GRACE_SECONDS: float = Field(
        900.0, ge=0, description="How long known keys keep working while the database is out of reach"
    )
    AILB_REQUEST_TIMEOUT_SECONDS: float = Field(
        600.0, ge=0.05, le=3600, description="Until a request's first content, or its whole plain answer, all attempts"
    )
    AILB_RETRIES: int = Field(
        1, ge=0, le=10, description="How often a deployment that broke is asked again where there is no other"
    )
    AILB_SHUTDOWN_SECONDS: float = Field(
        30.0, ge=0, description="How long requests in flight may take to end after SIGTERM"
    )
    AILB_LOG_LEVEL: Literal["debug", "info", "warning", "error"] = Field("info", description="Least severe log line")

    @field_validator(
        "OPENAI_MODELS",
        "ANTHROPIC_MODELS",
        "OLLAMA_MODELS",
        "AILB_ALLOWED_HOSTS",
        "AILB_CSRF_ORIGINS",
        "AILB_CORS_ORIGINS",
        "AILB_ALERT_EMAILS",
        mode="before",
    )
    @classmethod
    def _split(cls, value: Any) -> Any:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @field_validator("OPENAI_BASE_URL", "ANTHROPIC_BASE_URL", "OLLAMA_BASE_URL")
    @classmethod
    def _url(cls, value: str | None) -> str | None:
        if value is None:
            return None
        if not value.startswith(("http://", "https://")):
            raise ValueError("a URL that begins with http:// or https://")
        return value.rstrip("/")

    @field_validator("ANTHROPIC_BASE_URL", "OLLAMA_BASE_URL")
    @classmethod
    def _without_version(cls, value: str | None) -> str | None:
        """Requests would go to /v1/v1/messages, and each of them would be answered with 404."""
        if value is not None and value.endswith("/v1"):
            raise ValueError("the URL without /v1 at its end")
        return value

    @field_validator("OLLAMA_BASE_URL")
    @classmethod
    def _without_api(cls, value: str | None) -> str | None:
        if value is not None and value.endswith("/api"):
            raise ValueError("the URL without /api at its end")
        return value

    @field_validator("AILB_ADMIN_KEY")
    @classmethod
    def _long_enough(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and len(value.get_secret_value()) < 24:
            raise ValueError("24 characters or more")
        return value

    @field_validator("AILB_ENCRYPTION_KEYS")
    @classmethod
    def _fernet(cls, value: SecretStr | None) -> SecretStr | None:
        for key in _parts(value):
            try:
                Fernet(key)
            except ValueError:
                raise ValueError("comma-separated Fernet keys: 32 bytes each, URL-safe base64") from None
        return value

    @field_validator("DATABASE_URL")
    @classmethod
    def _database(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not value.get_secret_value().startswith(
            ("postgres://", "postgresql://", "sqlite:///")
        ):
            raise ValueError("postgres://user:password@host:port/name or sqlite:////absolute/path")
        return value

    @field_validator("REDIS_URL")
    @classmethod
    def _redis(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not value.get_secret_value().startswith(("redis://", "rediss://", "unix://")):
            raise ValueError("redis://host:port/number")
        return value

    @field_validator("AILB_EMAIL_URL")
    @classmethod
    def _email(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            mail_server(value.get_secret_value())
        return value

    @field_validator("AILB_EMAIL_FROM", "AILB_ALERT_EMAILS")
    @classmethod
    def _addresses(cls, value: Any) -> Any:
        for address in (value,) if isinstance(value, str) else value:
            if not re.fullmatch(r"[^@\s,<>]+@[^@\s,<>]+", address):
                raise ValueError("e-mail addresses, such as ops@example.com")
        return value

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings, _SecretFiles(settings_cls)


def is_secret(name: str) -> bool:
    """Whether `NAME_FILE` may stand for the setting and its value is never shown."""
    return SecretStr in (Env.model_fields[name].annotation, *get_args(Env.model_fields[name].annotation))


class _SecretFiles(PydanticBaseSettingsSource):
    """`NAME_FILE`: the path of a file that holds secret `NAME`."""

    def get_field_value(self, field: Any, field_name: str) -> tuple[Any, str, bool]:
        path = os.environ.get(f"{field_name}_FILE")
        if not path or not is_secret(field_name):
            return None, field_name, False
        try:
            return Path(path).read_text().strip(), field_name, False
        except OSError as error:
            raise SettingsError(f"{field_name}_FILE: cannot read {path}: {error.strerror}") from None

    def __call__(self) -> dict[str, Any]:
        values = {name: self.get_field_value(field, name)[0] for name, field in Env.model_fields.items()}
        return {name: value for name, value in values.items() if value is not None}


def load() -> Env:
    """Read the environment.

    Raises `SettingsError` with the one line to show.
    """
    try:
        env = Env()
    except ValidationError as error:
        raise SettingsError(_one_line(error)) from None
    if env.AILB_ALERT_EMAILS and env.AILB_EMAIL_URL is None:
        raise SettingsError("AILB_EMAIL_URL: got nothing; takes smtp://host:port, since AILB_ALERT_EMAILS is set")
    return _with_secrets(env)


def _one_line(error: ValidationError) -> str:
    problem = error.errors()[0]
    name = str(problem["loc"][0])
    got = "a value that is not shown" if is_secret(name) else repr(problem["input"])
    takes = problem["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    return f"{name}: got {got}; takes {takes}"


def _parts(value: SecretStr | None) -> list[str]:
    return [part.strip() for part in value.get_secret_value().split(",") if part.strip()] if value else []


def encryption_keys(env: Env) -> list[str]:
    """Fernet keys, newest first."""
    return _parts(env.AILB_ENCRYPTION_KEYS)


_MAIL_PORTS = {"smtp": 25, "smtp+tls": 587, "smtps": 465}


def mail_server(url: str) -> dict[str, Any]:
    """Django's settings of the server. Raises `ValueError`."""
    parts = urlsplit(url)
    if parts.scheme not in _MAIL_PORTS or not parts.hostname or parts.path.strip("/") or parts.query or parts.fragment:
        raise ValueError("smtp://, smtp+tls:// or smtps://, then user:password@ where it wants them, host and port")
    return {
        "EMAIL_HOST": parts.hostname,
        "EMAIL_PORT": parts.port or _MAIL_PORTS[parts.scheme],
        "EMAIL_HOST_USER": unquote(parts.username or ""),
        "EMAIL_HOST_PASSWORD": unquote(parts.password or ""),
        "EMAIL_USE_TLS": parts.scheme == "smtp+tls",
        "EMAIL_USE_SSL": parts.scheme == "smtps",
    }


def database(env: Env) -> dict[str, Any]:
    """Django's DATABASES entry."""
    url = env.DATABASE_URL.get_secret_value() if env.DATABASE_URL else None
    if url is None or url.startswith("sqlite"):
        config: dict[str, Any] = dict(dj_database_url.parse(url)) if url else {"ENGINE": "django.db.backends.sqlite3"}
        return {
            **config,
            "CONN_MAX_AGE": None,
            "NAME": config.get("NAME") or str(env.AILB_DATA_DIR.resolve() / "ailb.sqlite3"),
            "OPTIONS": {
                # A writer waits for another instead of failing; immediate transactions take the lock at their start,
                # where waiting is possible (an upgrade in the middle of a transaction fails at once).
                "timeout": 20,
                "transaction_mode": "IMMEDIATE",
                "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA busy_timeout=20000;",
            },
        }
    parsed = dict(dj_database_url.parse(url, conn_max_age=60, conn_health_checks=True))
    # A database that hangs must not hang the gateway: connects and silent peers are given up after seconds.
    given: Any = parsed.get("OPTIONS", {})
    options = {"connect_timeout": 3, "tcp_user_timeout": 5000, **given}
    return {**parsed, "OPTIONS": options}


SECRET_FILES = {
    "AILB_SECRET_KEY": lambda: secrets.token_urlsafe(48),
    "AILB_KEY_PEPPER": lambda: secrets.token_urlsafe(48),
    "AILB_ENCRYPTION_KEYS": lambda: Fernet.generate_key().decode(),
}


def _with_secrets(env: Env) -> Env:
    """Complete `env` with the generated secrets, making them on the first start.

    With PostgreSQL nothing is generated: every host must have the same, so a missing one is refused.
    """
    missing = [name for name in SECRET_FILES if getattr(env, name) is None]
    if not missing:
        return env
    if database(env)["ENGINE"] != "django.db.backends.sqlite3":
        raise SettingsError(f"{missing[0]}: got nothing; takes the same value on every host, since DATABASE_URL is set")
    folder = env.AILB_DATA_DIR
    return env.model_copy(update={name: SecretStr(_generated(folder, name)) for name in missing})


def _generated(folder: Path, name: str) -> str:
    path = folder / name.removeprefix("AILB_").lower()
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        # O_EXCL: of two processes that start at once, one makes the secret and both read it.
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, stat.S_IRUSR | stat.S_IWUSR)
    except FileExistsError:
        return _read_generated(path, name)
    except OSError as error:
        raise SettingsError(f"AILB_DATA_DIR: got {str(folder)!r}; takes a writable folder: {error.strerror}") from None
    with os.fdopen(descriptor, "w") as file:
        file.write(value := SECRET_FILES[name]())
    return value


def _read_generated(path: Path, name: str) -> str:
    value = path.read_text().strip()
    if not value:
        raise SettingsError(
            f"{name}: got an empty file {path.name} in AILB_DATA_DIR; takes a secret, or remove the file"
        )
    return value


_HEAD = """# Configuration

AILB is configured by its environment. A wrong setting stops the start with one line that names it, what it got and
what it takes. Any secret `NAME` (marked below) may come as `NAME_FILE`, the path of a file that holds it.

This page is made from the settings themselves: `manage.py settings_docs > docs/configuration.md`.

| setting | default | what it is |
| --- | --- | --- |
"""


def documentation() -> str:
    """docs/configuration.md."""
    return _HEAD + "".join(_documented(name) for name in Env.model_fields)


def _documented(name: str) -> str:
    field = Env.model_fields[name]
    default = ",".join(field.default) if isinstance(field.default, tuple) else field.default
    shown = "" if default in (None, "") else f"`{str(default).lower() if isinstance(default, bool) else default}`"
    return f"| `{name}` | {shown} | {field.description}{' (secret)' if is_secret(name) else ''} |\n"
