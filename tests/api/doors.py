"""The cast, and the doors they come through.

Team red: Lea leads, Alice owns what the tests ask for, Bob is her colleague. Charlie is in team blue, which Lex
leads, and must see nothing of hers. Ada is admin, Fin finance, Vic a viewer. Everyone signs in by session, named by
their first name; `alice's key`, `red's key` (a team's, without a user), `lone key` (nobody's) and `admin key` are
bearer keys; `nobody` has no credentials.
"""

import json
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from django.conf import settings
from django.test import Client

from billing import services as billing
from billing.models import Budget
from keys import secrets, services
from keys.actors import COMMAND
from keys.models import User, VirtualKey

ROLES = {
    "ada": ("admin", None),
    "fin": ("finance", None),
    "lea": ("team_lead", "red"),
    "lex": ("team_lead", "blue"),
    "alice": ("member", "red"),
    "bob": ("member", "red"),
    "charlie": ("member", "blue"),
    "vic": ("viewer", None),
}
SESSIONS = tuple(ROLES)
KEYS = ("admin key", "alice's key", "red's key", "lone key")
EVERYONE = (*SESSIONS, *KEYS, "nobody")


@dataclass(frozen=True)
class Answer:
    """A response, read once."""

    status: int
    body: Any
    headers: dict[str, str]


@dataclass(frozen=True)
class Door:
    """One caller's way in: `door.post("/api/keys", name="x")`."""

    secret: str | None = None
    user: User | None = None

    def client(self) -> Client:
        client = Client(raise_request_exception=False)
        if self.user is not None:
            client.force_login(self.user)
        return client

    def send(self, method: str, path: str, data: Any = None, headers: dict[str, str] | None = None) -> Answer:
        bearer = {"Authorization": f"Bearer {self.secret}"} if self.secret is not None else {}
        sent = data if isinstance(data, bytes) else json.dumps(data).encode() if data is not None else b""
        response = self.client().generic(
            method, path, sent, content_type="application/json", headers={**bearer, **(headers or {})}
        )
        told = {name.lower(): value for name, value in response.headers.items()}
        is_json = told.get("content-type", "").startswith("application/json") and response.content
        return Answer(response.status_code, json.loads(response.content) if is_json else response.content, told)

    def get(self, path: str, **headers: str) -> Answer:
        return self.send("GET", path, headers=headers)

    def post(self, path: str, /, **fields: Any) -> Answer:
        return self.send("POST", path, fields)

    def patch(self, path: str, /, **fields: Any) -> Answer:
        return self.send("PATCH", path, fields)

    def delete(self, path: str) -> Answer:
        return self.send("DELETE", path)


@dataclass
class Cast:
    """Everybody, and what is Alice's."""

    doors: dict[str, Door]
    keys: dict[str, VirtualKey]
    secrets: dict[str, str]
    budgets: dict[str, Budget] = field(default_factory=dict)

    @property
    def key(self) -> VirtualKey:
        return self.keys["alice's key"]

    def __getitem__(self, name: str) -> Door:
        return self.doors[name]


def make_user(name: str, role: str = "member", team: str | None = None) -> User:
    """A person as they are found in the database; no hashing of passwords, which costs 50 ms each."""
    user = services.ensure_user(actor=COMMAND, user_id=name, team=team)
    return services.set_role(actor=COMMAND, user=user, role=role) if user.role != role else user


def make_key(name: str, **fields: Any) -> tuple[VirtualKey, str]:
    return services.create_key(actor=COMMAND, name=name, **fields)


def make_cast() -> Cast:
    doors = {name: Door(user=make_user(name, role, team)) for name, (role, team) in ROLES.items()}
    made = {
        "admin key": make_key("admin key", role="admin"),
        "alice's key": make_key("alice's key", user_id="alice", monthly_quota_dollars=Decimal(50)),
        "bob's key": make_key("bob's key", user_id="bob"),
        "charlie's key": make_key("charlie's key", user_id="charlie"),
        "red's key": make_key("red's key", team="red"),
        "lone key": make_key("lone key"),
    }
    doors |= {name: Door(secret=secret) for name, (_, secret) in made.items()}
    doors["nobody"] = Door()
    budgets = {
        "alice's key": Budget.objects.get(),
        "alice": _budget("user", "alice", 60),
        "red": _budget("team", "red", 100),
        "organisation": _budget("organisation", "", 1000),
    }
    keys = {name: key for name, (key, _) in made.items()}
    return Cast(doors, keys, {name: secret for name, (_, secret) in made.items()}, budgets)


def _budget(scope: str, owner: str, dollars: int) -> Budget:
    return billing.set_budget(
        actor=COMMAND, scope=scope, owner=owner, limit_dollars=Decimal(dollars), limit_tokens=None
    )


def digest(secret: str) -> str:
    return secrets.digest(secret, settings.KEY_PEPPER)
