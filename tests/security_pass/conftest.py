"""Fixtures of the security pass: gateways in processes of their own, and the cast at `/api` and in the console."""

import pytest
from django.test import Client

from tests.api.doors import Cast, make_cast
from tests.console.pages import World, make_world, signed_in
from tests.system.conftest import make_gateway, prepared  # noqa: F401  # fixtures


@pytest.fixture
def cast(db) -> Cast:
    return make_cast()


@pytest.fixture
def world(cast: Cast) -> World:
    return make_world(cast)


@pytest.fixture
def ada(cast: Cast) -> Client:
    user = cast["ada"].user
    assert user is not None
    return signed_in(user)
