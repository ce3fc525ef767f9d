"""Django's settings, all derived from `ailb_project.env`."""

import os
import sys
from pathlib import Path

from ailb_project import env as environment
from ailb_project.console_settings import UNFOLD  # noqa: F401  # a setting
from ailb_project.logs import configure as configure_logs

try:
    ENV = environment.load()
except environment.SettingsError as error:
    sys.exit(f"ailb: {error}")

# What the gateway writes (SQLite with its sessions and conversations, journals, locks) is for its owner alone, also
# in a folder that somebody else made. A migration is for everybody: the image's user reads what a developer wrote.
if "makemigrations" not in sys.argv:
    os.umask(0o077)

DATA_DIR = ENV.AILB_DATA_DIR.resolve()
SECRET_KEY = ENV.AILB_SECRET_KEY.get_secret_value()  # type: ignore[union-attr]  # load() made it
KEY_PEPPER = ENV.AILB_KEY_PEPPER.get_secret_value().encode()  # type: ignore[union-attr]
ENCRYPTION_KEYS = environment.encryption_keys(ENV)

DEBUG = False
ALLOWED_HOSTS = list(ENV.AILB_ALLOWED_HOSTS)
CSRF_TRUSTED_ORIGINS = list(ENV.AILB_CSRF_ORIGINS)
# Behind a proxy that speaks TLS the console's origin must be named (Django refuses its forms otherwise). Where all
# origins are https, browsers come by nothing else: see `ailb_project.browser_security`.
BEHIND_TLS = bool(CSRF_TRUSTED_ORIGINS) and all(origin.startswith("https://") for origin in CSRF_TRUSTED_ORIGINS)

INSTALLED_APPS = [
    # Before staticfiles: it replaces runserver. Elsewhere its Twisted would be 15 MB in every process.
    *(["daphne"] if "runserver" in sys.argv else []),
    "unfold",
    "unfold.contrib.filters",
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "whitenoise.runserver_nostatic",
    "django.contrib.staticfiles",
    "django_prometheus",
    "rest_framework",
    "drf_spectacular",
    "drf_spectacular_sidecar",
    "keys",
    "gateway",
    "billing",
    "security",
    "memory",
    "rag",
    "grpc_module",
]

MIDDLEWARE = [
    "ailb_project.browser_security.middleware",
    "django.middleware.security.SecurityMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "keys.middleware.FirstPasswordMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]

ROOT_URLCONF = "ailb_project.urls"
ASGI_APPLICATION = "ailb_project.asgi.application"
APPEND_SLASH = False  # paths of the contract have none

TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [Path(__file__).resolve().parent.parent / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]

DATABASES = {"default": environment.database(ENV)}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
AUTH_USER_MODEL = "keys.User"
AUTHENTICATION_BACKENDS = ["keys.signing_in.PasswordBackend"]
LOGIN_FAILURES = ENV.AILB_LOGIN_FAILURES
LOGIN_LOCK_SECONDS = ENV.AILB_LOGIN_LOCK_SECONDS
PASSWORD_HASHERS = [
    "django.contrib.auth.hashers.Argon2PasswordHasher",
    "django.contrib.auth.hashers.PBKDF2PasswordHasher",
]
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": "django.contrib.auth.password_validation.UserAttributeSimilarityValidator"},
    {"NAME": "django.contrib.auth.password_validation.MinimumLengthValidator", "OPTIONS": {"min_length": 12}},
    {"NAME": "django.contrib.auth.password_validation.CommonPasswordValidator"},
]
LOGIN_URL = "admin:login"
LOGIN_REDIRECT_URL = "admin:index"  # where a `next` leads that is no path of ours

SESSION_COOKIE_AGE = 12 * 60 * 60  # a working day; an admin's session is worth more than two weeks' comfort
SESSION_COOKIE_HTTPONLY = True
SESSION_COOKIE_SAMESITE = "Lax"
SESSION_COOKIE_SECURE = BEHIND_TLS
CSRF_COOKIE_HTTPONLY = True
CSRF_COOKIE_SAMESITE = "Lax"
CSRF_COOKIE_SECURE = BEHIND_TLS
# Nothing that a client sends: `ailb_project.browser_security` sets it, and X-Forwarded-Proto is believed from nobody.
SECURE_PROXY_SSL_HEADER = ("AILB_SCHEME", "https") if BEHIND_TLS else None
SECURE_HSTS_SECONDS = ENV.AILB_HSTS_SECONDS if BEHIND_TLS else 0
SECURE_CONTENT_TYPE_NOSNIFF = True
SECURE_REFERRER_POLICY = "same-origin"
X_FRAME_OPTIONS = "DENY"
# Of `manage.py check --deploy`:
SILENCED_SYSTEM_CHECKS = [
    "security.W008",  # the gateway speaks plain HTTP; from http to https its proxy redirects
    "security.W005",  # other names of the domain
    "security.W021",  # are not this installation's to decide on
    "security.W004",  # AILB_HSTS_SECONDS says
    # Without a proxy it is reached by plain HTTP, on loopback: cookies that only TLS carries would never arrive.
    *([] if BEHIND_TLS else ["security.W012", "security.W016"]),
]

LANGUAGE_CODE = "en-gb"
TIME_ZONE = "UTC"
USE_TZ = True
USE_I18N = False

STATIC_URL = "/static/"
WHITENOISE_USE_FINDERS = True  # served from the packages: no collectstatic step
WHITENOISE_AUTOREFRESH = False

DATA_UPLOAD_MAX_MEMORY_SIZE = 20 * 1024 * 1024

REST_FRAMEWORK = {
    "DEFAULT_AUTHENTICATION_CLASSES": [
        "keys.api.authentication.KeyAuthentication",
        "keys.api.authentication.ConsoleSession",
    ],
    "DEFAULT_PERMISSION_CLASSES": ["rest_framework.permissions.IsAuthenticated"],
    "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"],
    "DEFAULT_PARSER_CLASSES": ["rest_framework.parsers.JSONParser"],
    "DEFAULT_SCHEMA_CLASS": "drf_spectacular.openapi.AutoSchema",
    "EXCEPTION_HANDLER": "gateway.render.api_exception_handler",
    "DEFAULT_PAGINATION_CLASS": None,
    "UNAUTHENTICATED_USER": None,
}
SPECTACULAR_SETTINGS = {
    "TITLE": "AILB",
    "DESCRIPTION": "A gateway between an organisation's programs and its LLM providers.",
    "VERSION": "1",
    "SERVE_INCLUDE_SCHEMA": False,
    "SWAGGER_UI_DIST": "SIDECAR",
    "SWAGGER_UI_FAVICON_HREF": "SIDECAR",
    "REDOC_DIST": "SIDECAR",
    # Fields of the same name that take different choices.
    "ENUM_NAME_OVERRIDES": {
        "KindEnum": "gateway.providers.kinds",
        "StatusEnum": ["healthy", "warning", "exceeded"],
        "AlertKindEnum": "billing.models.alerts.AlertKind",
        "DeliveryStatusEnum": "billing.models.alerts.DeliveryStatus",
    },
}

if ENV.AILB_EMAIL_URL is not None:
    globals().update(environment.mail_server(ENV.AILB_EMAIL_URL.get_secret_value()))
EMAIL_TIMEOUT = 5  # seconds: the other jobs wait
DEFAULT_FROM_EMAIL = ENV.AILB_EMAIL_FROM
ALERT_EMAILS = list(ENV.AILB_ALERT_EMAILS)

CELERY_BROKER_URL = ENV.REDIS_URL.get_secret_value() if ENV.REDIS_URL else None
CELERY_TASK_SERIALIZER = "json"
CELERY_ACCEPT_CONTENT = ["json"]

PROMETHEUS_MULTIPROC_DIR = os.environ.get("PROMETHEUS_MULTIPROC_DIR")  # set by `serve` for several workers
PROMETHEUS_EXPORT_MIGRATIONS = False

LOGGING_CONFIG = None
configure_logs(ENV.AILB_LOG_LEVEL)
