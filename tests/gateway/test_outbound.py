"""Where the gateway may connect to."""

import ipaddress
import socket

import aiohttp
import pytest
from django.core.exceptions import ValidationError

from gateway import outbound
from gateway.models import Provider

NEVER = (
    "169.254.169.254", "169.254.0.1", "fe80::1", "0.0.0.0", "::", "224.0.0.1", "ff02::1", "100.100.100.200",
    "192.0.0.192",
    "fd00:ec2::254", "::ffff:169.254.169.254", "2002:a9fe:a9fe::",
)  # fmt: skip
PRIVATE = ("127.0.0.1", "::1", "10.0.0.1", "172.16.0.1", "192.168.1.1", "fd12::1", "::ffff:127.0.0.1", "100.64.0.1")
PUBLIC = ("1.1.1.1", "2606:4700:4700::1111")


@pytest.mark.parametrize("address", NEVER)
@pytest.mark.parametrize("trusted", [True, False])
def test_some_addresses_are_never_called(address, trusted):
    assert outbound.is_forbidden(ipaddress.ip_address(address), trusted_network=trusted)


@pytest.mark.parametrize("address", PRIVATE)
def test_private_ones_where_an_admin_set_them(address):
    assert outbound.is_forbidden(ipaddress.ip_address(address), trusted_network=False)
    assert not outbound.is_forbidden(ipaddress.ip_address(address), trusted_network=True)


@pytest.mark.parametrize("address", PUBLIC)
def test_public_ones(address):
    assert not outbound.is_forbidden(ipaddress.ip_address(address), trusted_network=False)


class TestUrls:
    @pytest.mark.parametrize(
        "url",
        [
            *(f"http://{f'[{address}]' if ':' in address else address}/v1" for address in NEVER),
            "http://2852039166/v1", "http://0xa9fea9fe/v1", "http://0251.0376.0251.0376/v1", "http://169.254.43518/v1",
            "ftp://example.com", "file:///etc/passwd", "example.com/v1", "http://", "http:///v1", "", "//example.com",
            "http://user:secret@example.com/v1", "https://example.com/v1?key=secret", "https://example.com/v1#x",
            "http://[::1", "http://example.com:0/v1", "http://example.com:99999/v1", "javascript:alert(1)",
        ],
    )  # fmt: skip
    def test_refused(self, url):
        with pytest.raises(ValidationError) as caught:
            outbound.check_url(url)
        assert "secret" not in str(caught.value)

    @pytest.mark.parametrize(
        "url",
        [
            "https://api.openai.com/v1",
            "http://localhost:11434/v1",
            "http://127.0.0.1:8000/v1",
            "http://[::1]:8000/v1",
            "http://10.1.2.3/v1",
        ],
    )
    def test_taken(self, url):
        outbound.check_url(url)

    def test_private_ones_are_refused_where_nobody_of_ours_typed_them(self):
        with pytest.raises(ValidationError):
            outbound.check_url("http://127.0.0.1/x", trusted_network=False)

    def test_a_providers_form_asks(self):
        with pytest.raises(ValidationError):
            Provider(slug="x", kind="openai", base_url="http://169.254.169.254/v1").clean()


class TestConnections:
    """What a form did not see: names that resolve badly, addresses from a backup."""

    @pytest.fixture
    def listener(self):
        with socket.create_server(("127.0.0.1", 0)) as listener:
            listener.settimeout(0.1)
            yield listener

    async def fetched(self, url, *, trusted, resolves_to=None, monkeypatch=None):
        if resolves_to is not None:

            async def resolve(self, host, port=0, family=socket.AF_INET):
                return [
                    {"hostname": host, "host": address, "port": port, "family": socket.AF_INET, "proto": 0, "flags": 0}
                    for address in resolves_to
                ]

            monkeypatch.setattr("gateway.outbound.ThreadedResolver.resolve", resolve)
        timeout = aiohttp.ClientTimeout(total=0.5)
        async with (
            aiohttp.ClientSession(connector=outbound.connector(trusted_network=trusted), timeout=timeout) as session,
            session.get(url),
        ):
            pass

    def was_called(self, listener):
        try:
            connection, _ = listener.accept()
        except TimeoutError:
            return False
        connection.close()
        return True

    @pytest.mark.parametrize(("trusted", "called"), [(True, True), (False, False)])
    async def test_a_name_is_judged_by_what_it_resolves_to(self, listener, monkeypatch, trusted, called):
        url = f"http://inside.example:{listener.getsockname()[1]}/"
        with pytest.raises((aiohttp.ClientError, TimeoutError)):
            await self.fetched(url, trusted=trusted, resolves_to=["127.0.0.1"], monkeypatch=monkeypatch)
        assert self.was_called(listener) is called

    async def test_of_several_addresses_only_the_allowed_are_tried(self, listener, monkeypatch):
        url = f"http://mixed.example:{listener.getsockname()[1]}/"
        with pytest.raises((aiohttp.ClientError, TimeoutError)):
            await self.fetched(url, trusted=True, resolves_to=["169.254.169.254", "127.0.0.1"], monkeypatch=monkeypatch)
        assert self.was_called(listener)

    @pytest.mark.parametrize("trusted", [True, False])
    async def test_an_address_is_judged_like_a_name(self, listener, trusted):
        # 0.0.0.0 is this host, and never to be called; 127.0.0.1 is private.
        host = "0.0.0.0" if trusted else "127.0.0.1"
        with pytest.raises((aiohttp.ClientError, TimeoutError)):
            await self.fetched(f"http://{host}:{listener.getsockname()[1]}/", trusted=trusted)
        assert not self.was_called(listener)
