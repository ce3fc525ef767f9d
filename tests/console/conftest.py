"""Fixtures of the tests that walk through the console."""

import pytest
from django.test import Client

from keys.models import User
from tests.api.doors import Cast, make_cast
from tests.console.pages import World, make_world, signed_in


@pytest.fixture
def cast(db) -> Cast:
    # An admin who can sign in: the console refuses to be left without one.
    made = make_cast()
    ada = User.objects.get(username="ada")
    ada.set_password("a password of Ada's")
    ada.save()
    return made


@pytest.fixture
def world(cast: Cast) -> World:
    return make_world(cast)


@pytest.fixture
def ada(cast: Cast) -> Client:
    return signed_in(User.objects.get(username="ada"))


@pytest.fixture
def lea(cast: Cast) -> Client:
    return signed_in(User.objects.get(username="lea"))


@pytest.fixture
def alice(cast: Cast) -> Client:
    return signed_in(User.objects.get(username="alice"))
