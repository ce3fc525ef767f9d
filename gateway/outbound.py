"""Where the gateway may connect to, for every outbound call.

Link-local and metadata addresses never; loopback and private networks only where an admin set the address. A name is
resolved, each address is checked, and the connection goes to a checked address: the answer cannot change between
check and use. Redirects are not followed upstream.
"""

import asyncio
import ipaddress
import socket
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import ThreadedResolver
from django.core.exceptions import ValidationError

# Cloud metadata services that are not link-local: Alibaba, Oracle, Azure (WireServer, a public address); AWS's two and
# Google's in IPv6.
_METADATA = frozenset(
    map(
        ipaddress.ip_address,
        ("100.100.100.200", "192.0.0.192", "168.63.129.16", "fd00:ec2::254", "fd00:ec2::23", "fd20:ce::254"),
    )
)
# IPv6 prefixes whose last 32 bits are an IPv4 address: IPv4-compatible ones, NAT64's (RFC 6052, RFC 8215), SIIT's.
_EMBEDDING = tuple(map(ipaddress.IPv6Network, ("::/96", "64:ff9b::/96", "64:ff9b:1::/48", "::ffff:0:0:0/96")))
_NOT_EMBEDDED = frozenset(map(ipaddress.IPv6Address, ("::", "::1")))

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def is_forbidden(address: Address, *, trusted_network: bool) -> bool:
    """Whether no connection may be made to `address`; `trusted_network`: an admin set it."""
    address = _unwrapped(address)
    if address.is_link_local or address.is_multicast or address.is_unspecified or address in _METADATA:
        return True
    return not trusted_network and not address.is_global


def _unwrapped(address: Address) -> Address:
    """An IPv4 address inside an IPv6 one is judged as itself."""
    if not isinstance(address, ipaddress.IPv6Address) or address in _NOT_EMBEDDED:
        return address
    if any(address in network for network in _EMBEDDING):
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour or address


def _literal(host: str) -> Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        pass
    try:
        # 2130706433, 0x7f.1, 127.1: the C library takes them for addresses, so they are judged as such.
        return ipaddress.ip_address(socket.inet_aton(host))
    except OSError:
        return None


def check_url(url: str, *, trusted_network: bool = True) -> None:
    """Refuse a URL that may never be called; names are checked again when they are resolved.

    Raises `ValidationError` with a sentence for the one who typed it.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise ValidationError("This is not a URL.") from None
    if parts.scheme not in ("http", "https") or not host or port == 0:
        raise ValidationError("A URL begins with http:// or https:// and names a host.")
    if parts.username is not None or parts.query or parts.fragment:
        raise ValidationError("A base URL holds no credentials, query or fragment.")
    address = _literal(host)
    if address is not None and is_forbidden(address, trusted_network=trusted_network):
        raise ValidationError("Link-local, metadata and similar addresses are never called.")


class CheckedResolver(AbstractResolver):
    """Resolves names and drops the addresses that may not be called; aiohttp connects to what is left."""

    def __init__(self, *, trusted_network: bool) -> None:
        self._trusted = trusted_network
        self._resolver = ThreadedResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        found = await self._resolver.resolve(host, port, family)
        allowed = [
            entry
            for entry in found
            if not is_forbidden(ipaddress.ip_address(entry["host"].split("%")[0]), trusted_network=self._trusted)
        ]
        if found and not allowed:
            raise OSError(None, f"{host} resolves to addresses that are never called")
        return allowed

    async def close(self) -> None:
        await self._resolver.close()


class _CheckedConnector(aiohttp.TCPConnector):
    """aiohttp asks its resolver for names only: an address in the URL is judged here."""

    def __init__(self, *, trusted_network: bool, **options: Any) -> None:
        super().__init__(resolver=CheckedResolver(trusted_network=trusted_network), **options)
        self._trusted = trusted_network

    async def _resolve_host(self, host: str, port: int, traces: Any = None) -> list[ResolveResult]:
        address = _literal(host)
        if address is not None and is_forbidden(address, trusted_network=self._trusted):
            raise OSError(None, f"{host} is never called")
        return await super()._resolve_host(host, port, traces)


def connector(*, trusted_network: bool, **options: Any) -> aiohttp.TCPConnector:
    """An aiohttp connector under this policy; `options` are TCPConnector's own."""
    return _CheckedConnector(trusted_network=trusted_network, **options)


class Unreachable(Exception):
    """No answer came. The message says why, and holds nothing of the URL but its host."""


async def post(url: str, *, headers: Mapping[str, str], body: bytes, seconds: float, trusted_network: bool) -> int:
    """POST once, under this policy, and return the answer's status; its body is not read, a redirect is an answer.

    Raises `Unreachable`.
    """
    try:
        async with (
            asyncio.timeout(seconds),
            aiohttp.ClientSession(
                connector=connector(trusted_network=trusted_network), cookie_jar=aiohttp.DummyCookieJar()
            ) as session,
            session.post(url, data=body, headers=headers, allow_redirects=False) as response,
        ):
            return response.status
    except TimeoutError:
        raise Unreachable(f"No answer within {seconds:g} seconds.") from None
    except (aiohttp.ClientError, OSError, ValueError) as error:
        told = getattr(error, "strerror", None) or type(error).__name__
        raise Unreachable(f"{told}.") from None
