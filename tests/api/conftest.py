"""Fixtures of the tests that knock at `/api` and `/v1`."""

import pytest

from tests.api.doors import Cast, make_cast


@pytest.fixture
def cast(db) -> Cast:
    return make_cast()
