"""Addresses that reach what they do not look like. `tests/gateway/test_outbound.py` has the plain ones."""

import ipaddress

import pytest
from django.core.exceptions import ValidationError

from gateway import outbound
from tests.support.upstream import answers, says
from tests.support.world import make_deployment, make_price, make_provider

METADATA = "169.254.169.254"
DISGUISED = (
    "64:ff9b::a9fe:a9fe", "64:ff9b::169.254.169.254", "64:ff9b:1::a9fe:a9fe",  # NAT64
    "::169.254.169.254", "::a9fe:a9fe",  # IPv4-compatible
    "::ffff:a9fe:a9fe", "0:0:0:0:0:ffff:169.254.169.254",  # IPv4-mapped
    "::ffff:0:a9fe:a9fe",  # IPv4-translated
    "2002:a9fe:a9fe::1",  # 6to4
    "64:ff9b::6464:64c8", "::ffff:168.63.129.16",  # Alibaba's and Azure's in the same clothes
)  # fmt: skip
NEVER = ("168.63.129.16", "169.254.170.2", "169.254.170.23", "fd00:ec2::23", "fd20:ce::254")


@pytest.mark.parametrize("address", [*DISGUISED, *NEVER])
@pytest.mark.parametrize("trusted", [True, False])
def test_never(address: str, trusted: bool):
    assert outbound.is_forbidden(ipaddress.ip_address(address), trusted_network=trusted)
    host = f"[{address}]" if ":" in address else address
    with pytest.raises(ValidationError):
        outbound.check_url(f"http://{host}/v1", trusted_network=trusted)


@pytest.mark.parametrize(
    "address", ["64:ff9b::7f00:1", "::127.0.0.1", "64:ff9b::a00:1", "255.255.255.255", "240.0.0.1"]
)
def test_private_ones_in_disguise_are_an_admins_alone(address: str):
    assert outbound.is_forbidden(ipaddress.ip_address(address), trusted_network=False)


@pytest.mark.parametrize("address", ["64:ff9b::101:101", "2606:4700:4700::1111", "1.1.1.1"])
def test_public_ones_by_way_of_nat64_are_public(address: str):
    assert not outbound.is_forbidden(ipaddress.ip_address(address), trusted_network=False)


@pytest.mark.parametrize("host", [
    "2852039166", "0xa9fea9fe", "0XA9FEA9FE", "0251.0376.0251.0376", "169.254.43518", "169.16689662",
    "0xa9.254.169.254",
])  # fmt: skip
def test_numbers_that_the_c_library_takes_for_addresses(host: str):
    with pytest.raises(ValidationError):
        outbound.check_url(f"http://{host}/v1")


class TestAtTheDoor:
    """What a form let through, or never saw, is judged when it is called."""

    @pytest.fixture
    def at(self, gateway, alice):
        def ask(base_url: str):
            make_price()
            provider = make_provider("http://127.0.0.1:9/v1")
            make_deployment(provider)
            type(provider).objects.update(base_url=base_url)  # as from a backup: past the form
            return gateway.chat(alice)

        return ask

    @pytest.mark.parametrize("host", [
        "①⑥⑨.254.169.254", "169。254。169。254", "169.254.169.254.", "[64:ff9b::a9fe:a9fe]", "2852039166",
        "[fe80::1%25lo]",
    ])  # fmt: skip
    def test_it_is_not_called_and_the_client_learns_no_address(self, at, host: str):
        answer = at(f"http://{host}:9/v1")
        assert answer.status == 502
        assert "169" not in answer.body["error"]["message"]
        assert "never called" not in answer.body["error"]["message"]

    @pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
    def test_a_redirect_is_not_followed(self, gateway, model, alice, upstream, status: int, stream):
        """To another host it would carry the credential, or reach what no form lets in."""
        elsewhere = f"{upstream.url}/elsewhere"
        upstream.will(answers({}, status, location=elsewhere), answers({}, status, location="http://169.254.169.254/"))
        upstream.always(says("followed"))
        answer = gateway.chat(alice, stream=stream)
        assert "followed" not in answer.raw.decode()
        assert answer.status == 502
        assert "elsewhere" not in answer.raw.decode()
        assert not [received for received in upstream.requests if "elsewhere" in received.path]
