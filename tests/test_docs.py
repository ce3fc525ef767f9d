"""Documentation that cannot rot: it names what there is, with the values that there are."""

import inspect
import io
import re
from pathlib import Path

import pytest
from django.core.management import call_command
from pydantic_core import PydanticUndefined

from ailb_project.env import Env, is_secret
from gateway import errors

ROOT = Path(__file__).resolve().parent.parent
CONFIGURATION = ROOT / "docs" / "configuration.md"
HTTP_API = ROOT / "docs" / "http-api.md"


def rows(text: str) -> dict[str, list[str]]:
    """The lines of Markdown tables by the setting in their first cell."""
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip().strip("|"))]
        if (name := re.fullmatch(r"`([A-Z][A-Z0-9_]*)`", cells[0])) is not None:
            assert name[1] not in found, f"{name[1]} is listed twice"
            found[name[1]] = cells[1:]
    return found


def shown_default(name: str) -> str | None:
    """A setting's default as text; None where it has none."""
    default = Env.model_fields[name].default
    if default is None or default is PydanticUndefined or default == ():
        return None
    if isinstance(default, bool):
        return str(default).lower()
    if isinstance(default, tuple):
        return ",".join(default)
    return str(default)


@pytest.fixture(scope="module")
def listed() -> dict[str, list[str]]:
    assert CONFIGURATION.is_file(), "docs/configuration.md is not there: manage.py settings_docs writes it"
    return rows(CONFIGURATION.read_text())


class TestConfiguration:
    """`| `NAME` | default | description |`, in the order of the code; secrets are marked."""

    def test_it_is_what_the_command_prints(self):
        printed = io.StringIO()
        call_command("settings_docs", stdout=printed)
        assert CONFIGURATION.read_text() == printed.getvalue()

    def test_it_lists_every_setting_and_no_other_in_the_order_of_the_code(self, listed):
        assert list(listed) == list(Env.model_fields)

    def test_each_with_its_description(self, listed):
        wrong = [name for name, field in Env.model_fields.items() if not listed[name][-1].startswith(field.description)]
        assert wrong == []

    def test_each_with_its_default(self, listed):
        told = {name: {cell.strip("`") for cell in listed.get(name, [])} for name in Env.model_fields}
        expected = {name: {default} if (default := shown_default(name)) else {"", "none", "–"} for name in told}
        assert [name for name in told if not told[name] & expected[name]] == []

    def test_secrets_are_marked_and_nothing_else_is(self, listed):
        assert [name for name in listed if listed[name][-1].endswith("(secret)")] == [n for n in listed if is_secret(n)]


@pytest.mark.parametrize("name", Env.model_fields)
def test_every_setting_is_described_in_words(name):
    description = Env.model_fields[name].description
    assert description
    assert len(description) >= 10


@pytest.mark.parametrize("name", ["OPENAI_API_KEY", "AILB_SECRET_KEY", "AILB_KEY_PEPPER", "AILB_ENCRYPTION_KEYS",
                                  "AILB_ADMIN_KEY", "AILB_METRICS_TOKEN", "DATABASE_URL", "REDIS_URL"])  # fmt: skip
def test_secrets_are_marked_as_such(name):
    assert is_secret(name)


@pytest.mark.parametrize(
    "name", [name for name in Env.model_fields if re.search(r"_KEY$|_KEYS$|TOKEN|SECRET|PASSWORD|PEPPER", name)]
)
def test_what_sounds_like_a_secret_is_one(name):
    assert is_secret(name)


def _classes() -> list[type[errors.GatewayError]]:
    found = [member for member in vars(errors).values() if inspect.isclass(member)]
    return [member for member in found if issubclass(member, errors.GatewayError)]


CODES = sorted({(kind.status, kind.code) for kind in _classes() if kind.code is not None})


@pytest.fixture(scope="module")
def http_api() -> str:
    assert HTTP_API.is_file(), "docs/http-api.md is not there"
    return HTTP_API.read_text()


class TestErrors:
    def test_every_code_is_documented_beside_its_status(self, http_api):
        lines = http_api.splitlines()
        missing = [
            (status, code)
            for status, code in CODES
            if not any(f"`{code}`" in line and re.search(rf"\b{status}\b", line) for line in lines)
        ]
        assert missing == []

    def test_every_type_is_documented(self, http_api):
        types = {kind.type for kind in _classes()}
        assert [name for name in sorted(types) if not re.search(rf"\b{name}\b", http_api)] == []


def test_the_tree_at_the_top_of_errors_names_every_class():
    drawn = set(re.findall(r"[A-Z]\w+", (errors.__doc__ or "").split("Each class")[0]))
    assert {kind.__name__ for kind in _classes()} - drawn - {"NotFound"} == set()


@pytest.mark.parametrize("kind", _classes(), ids=lambda kind: kind.__name__)
def test_every_error_knows_its_two_facts(kind):
    """May we retry, may the caller see it: a status of HTTP, a type of the contract, and whether to try again."""
    assert 400 <= kind.status < 600
    assert isinstance(kind.retryable, bool)
    assert kind.type in {
        "invalid_request_error", "authentication_error", "insufficient_quota", "permission_error", "rate_limit_error",
        "upstream_error", "overloaded_error", "timeout_error", "server_error",
    }  # fmt: skip
