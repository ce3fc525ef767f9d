"""What the URLs promise beside their resources."""

import pytest

from tests.api.doors import Cast, Door


def test_the_front_page_is_the_console(cast: Cast):
    answer = Door().get("/")
    assert (answer.status, answer.headers["location"]) == (302, "/admin/")


@pytest.mark.parametrize("path", ["/api/keys", "/api/billing/usage", "/v1/models"])
def test_head_is_get_without_a_body(cast: Cast, path: str):
    answer = cast["admin key"].send("HEAD", path)
    assert (answer.status, answer.body) == (200, b"")
    assert cast["nobody"].send("HEAD", path).status == 401


@pytest.mark.parametrize("accept", ["text/html", "application/xml", "*/*", "nonsense"])
def test_there_is_one_representation(cast: Cast, accept: str):
    answer = cast["ada"].get("/api/keys", Accept=accept)
    assert (answer.status, answer.headers["content-type"]) == (200, "application/json")


def test_a_content_type_may_say_more(cast: Cast):
    client = cast["ada"].client()
    for content_type in ("application/json; charset=utf-8", "Application/JSON"):
        assert client.post("/api/keys", b'{"name":"n"}', content_type=content_type).status_code == 201
