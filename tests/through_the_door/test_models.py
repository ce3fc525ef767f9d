"""What a name stands for, and who may say it."""

import pytest

from gateway import lifespan
from tests.support.answers import assert_error
from tests.support.world import make_deployment, make_group, make_key, make_price, make_provider


class TestNames:
    @pytest.fixture
    def smart(self, provider):
        make_price("gpt-4.1-2026")
        return make_deployment(provider, "smart", "gpt-4.1-2026")

    @pytest.mark.parametrize("name", ["smart", "upstream/smart", "upstream/gpt-4.1-2026", "gpt-4.1-2026", "auto"])
    def test_a_deployment_goes_by(self, gateway, smart, alice, upstream, stream, name):
        answer = gateway.chat(alice, model=name, stream=stream)
        assert answer.status == 200
        assert answer.headers["x-ailb-model"] == "smart"
        assert upstream.only.body["model"] == "gpt-4.1-2026"
        row = gateway.settlement(answer.id)
        assert (row.requested_model, row.routed_model, row.deployment) == (name, "gpt-4.1-2026", "smart")

    @pytest.mark.parametrize("name", ["llama/3.1:8b", "org/model:free", "模型"])
    def test_names_may_hold_slashes_and_colons(self, gateway, provider, alice, upstream, name):
        make_deployment(provider, name)
        assert gateway.chat(alice, model=name).status == 200
        assert upstream.only.body["model"] == name

    def test_a_group(self, gateway, provider, smart, alice, upstream, stream):
        make_group("best", smart)
        answer = gateway.chat(alice, model="best", stream=stream)
        assert answer.headers["x-ailb-model"] == "smart"
        assert gateway.settlement(answer.id).requested_model == "best"

    def test_a_header_where_the_body_names_none(self, gateway, smart, alice, stream):
        answer = gateway.chat(alice, model=None, stream=stream, headers={"x-preferred-model": "smart"})
        assert answer.headers["x-ailb-model"] == "smart"

    def test_the_body_before_the_header(self, gateway, smart, alice):
        answer = gateway.chat(alice, model="smart", headers={"x-preferred-model": "nobody"})
        assert answer.headers["x-ailb-model"] == "smart"


class TestUnknown:
    @pytest.mark.parametrize("name", ["gpt-5", "GPT-TEST", "other/gpt-test", "gpt-test ", "*"])
    def test_is_not_found(self, gateway, model, alice, upstream, stream, name):
        answer = gateway.chat(alice, model=name, stream=stream)
        assert_error(answer, 404, "invalid_request_error", "model_not_found", param="model")
        assert not upstream.requests

    def test_so_is_one_that_was_disabled(self, gateway, model, alice, stream):
        assert gateway.chat(alice, stream=stream).status == 200
        model.enabled = False
        model.save()
        assert gateway.chat(alice, stream=stream).status == 404

    def test_and_one_whose_provider_was(self, gateway, model, provider, alice):
        provider.enabled = False
        provider.save()
        assert gateway.chat(alice).status == 404

    def test_a_group_of_nobody(self, gateway, model, alice):
        make_group("empty")
        assert gateway.chat(alice, model="empty").status == 404

    def test_auto_of_nothing(self, gateway, alice):
        assert gateway.chat(alice, model="auto").status == 404


class TestForbidden:
    @pytest.fixture
    def other(self, provider):
        return make_deployment(provider, "other")

    def test_a_model_that_is_not_on_the_keys_list(self, gateway, model, other, upstream, stream):
        key = make_key(allowed_models=["other"])
        answer = gateway.chat(key, stream=stream)
        assert_error(answer, 403, "permission_error", "model_not_allowed", param="model")
        assert gateway.chat(key, model="other", stream=stream).status == 200
        assert len(upstream.requests) == 1

    @pytest.mark.parametrize("name", ["upstream/gpt-test", "auto", "pair"])
    def test_another_name_of_it_is_no_way_in(self, gateway, model, other, name):
        make_group("pair", model)
        key = make_key(allowed_models=["nothing"])
        assert_error(gateway.chat(key, model=name), 403, "permission_error", "model_not_allowed", param="model")

    def test_an_empty_list_forbids_all(self, gateway, model):
        answer = gateway.chat(make_key(allowed_models=[]))
        assert_error(answer, 403, "permission_error", "model_not_allowed", param="model")

    def test_of_a_group_only_the_allowed_members_serve(self, gateway, provider, model, other, upstream):
        make_group("pair", model, other)
        key = make_key(allowed_models=["other"])
        assert {gateway.chat(key, model="pair").headers["x-ailb-model"] for _ in range(5)} == {"other"}

    def test_a_group_may_be_allowed_by_its_own_name(self, gateway, model, other):
        make_group("pair", model, other)
        key = make_key(allowed_models=["pair"])
        assert gateway.chat(key, model="pair").status == 200
        assert gateway.chat(key).status == 403

    def test_an_unknown_model_is_not_found_for_everyone(self, gateway, model):
        assert gateway.chat(make_key(allowed_models=["gpt-test"]), model="nobody").status == 404


def test_a_change_is_in_force_with_the_next_request(gateway, model, alice, upstream):
    assert gateway.chat(alice).status == 200
    model.upstream_model = "gpt-newer"
    model.save()
    gateway.chat(alice)
    assert [received.body["model"] for received in upstream.requests] == ["gpt-test", "gpt-newer"]


def test_a_new_credential_is_used_with_the_next_request(gateway, model, provider, alice, upstream):
    gateway.chat(alice)
    provider.set_credentials(api_key="sk-newer-credential")
    provider.save()
    gateway.chat(alice)
    assert upstream.last.headers["authorization"] == "Bearer sk-newer-credential"


def test_a_provider_that_cannot_be_read_leaves_the_others(gateway, model, alice, upstream):
    broken = make_provider(upstream.url, slug="broken")
    make_deployment(broken, "lost")
    type(broken).objects.filter(pk=broken.pk).update(credentials="not sealed by us")
    assert gateway.chat(alice).status == 200
    assert gateway.chat(alice, model="lost").status == 404


def test_a_replaced_pool_of_connections_is_closed_with_the_gateway(gateway, model, provider, alice):
    gateway.chat(alice)
    config = gateway.plane.snapshot().catalog.deployments[model.name].provider
    connector = gateway.plane.provider(config)._client._connector
    assert connector is not None
    provider.set_credentials(api_key="sk-newer-credential")
    provider.save()
    gateway.chat(alice)
    gateway.do(lifespan.close())
    assert connector.closed
