"""From a host to the addresses that may be connected to: public ones, unless a rule names the host as internal.

The host is resolved once, here, and the connection goes to the very address that was looked at: a name that answers
differently the second time (DNS rebinding) gains nothing.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from posttrainbench.gateway.web_names import Host, Refused
from posttrainbench.gateway.web_rules import Rule

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

RESOLVE_LIMIT_S = 15.0
_MOST = 8
# Networks whose addresses hold an IPv4 address: NAT64 (RFC 6052, 8215), 6to4, IPv4-compatible and -translated ones.
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_UNICAST = ipaddress.IPv6Network("2000::/3")
_EMBEDDING = (
    (_NAT64, 0),
    (ipaddress.IPv6Network("64:ff9b:1::/48"), 0),
    (ipaddress.IPv6Network("2002::/16"), 80),
    (ipaddress.IPv6Network("::/96"), 0),
    (ipaddress.IPv6Network("::ffff:0:0:0/96"), 0),
)
# Beyond what the ipaddress module calls not global: metadata services of clouds on addresses that look public.
_METADATA = frozenset(map(ipaddress.ip_address, ("168.63.129.16", "100.100.100.200", "192.0.0.192", "fd00:ec2::254")))
_threads = ThreadPoolExecutor(max_workers=8, thread_name_prefix="resolve")


class Resolver(Protocol):
    """Finds the addresses of a name; raises `OSError` where there are none."""

    async def __call__(self, name: str, port: int, /) -> Sequence[str]: ...


async def system_resolver(name: str, port: int, /) -> Sequence[str]:
    """The machine's own, in threads of ours: a slow name server must not hold up others' work."""
    found = await asyncio.get_running_loop().run_in_executor(
        _threads, lambda: socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)
    )
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def inner_addresses(address: Address) -> list[Address]:
    """The address and every IPv4 address that it may lead to."""
    found: list[Address] = [address]
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            found = [address.ipv4_mapped]
        if address.teredo is not None:
            found += address.teredo
        for network, shift in _EMBEDDING:
            if address in network and address.ipv4_mapped is None:
                found.append(ipaddress.IPv4Address((int(address) >> shift) & 0xFFFFFFFF))
    return found


def is_public(address: Address) -> bool:
    """Whether it is an address of the open internet, and leads to no other kind."""
    return all(map(_is_public, inner_addresses(address)))


def _is_public(address: Address) -> bool:
    if isinstance(address, ipaddress.IPv6Address):
        if address in _NAT64:  # what it holds is looked at by itself
            return True
        if address not in _UNICAST:
            return False
    return address.is_global and not address.is_multicast and not address.is_reserved and address not in _METADATA


def _never(address: Address) -> bool:
    """Not even an internal host may be there: link-local addresses, where clouds keep their credentials."""
    return any(
        one.is_link_local or one.is_unspecified or one.is_multicast or one in _METADATA
        for one in inner_addresses(address)
    )


def is_own(address: Address) -> bool:
    """Whether the machine itself has the address, public or not. The kernel tells without sending anything."""
    family = socket.AF_INET6 if address.version == 6 else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((str(address), 9))
            return str(probe.getsockname()[0]) == str(address)
        except OSError:
            return False


def check(address: Address, host: Host, internal: Rule | None) -> None:
    """Make sure that the host may be at this address.

    Raises:
        Refused: it may not.
    """
    if internal is None:
        if not is_public(address) or is_own(address):
            raise Refused(
                "private-address",
                f"{host.name} has the address {address}, which is not on the open internet. Is it a mirror that the "
                "run is meant to use, then the operator has to name it as an internal host.",
            )
        return
    if _never(address):
        raise Refused("private-address", f"{host.name} has the address {address}, where no host is reached.")
    if internal.networks and not any(address in network for network in internal.networks):
        raise Refused("private-address", f"{host.name} has the address {address}, outside of the networks of its rule.")


async def resolve(host: Host, port: int, *, internal: Rule | None, resolver: Resolver) -> list[str]:
    """The addresses to try, in order.

    Raises:
        Refused: there is none (status 502), or one of them may not be connected to.
    """
    if host.literal:
        found: Sequence[str] = [host.name]
    else:
        try:
            found = await asyncio.wait_for(resolver(host.name, port), RESOLVE_LIMIT_S)
        except TimeoutError:
            raise Refused("name-service", f"The name service did not answer for {host.name}.", status=504) from None
        except (OSError, UnicodeError):
            found = []
    if not found:
        raise Refused("unknown-host", f"No address is known for {host.name}; check the spelling.", status=502)
    addresses = []
    for text in found:
        address = ipaddress.ip_address(text.partition("%")[0])
        if "%" in text:
            raise Refused("private-address", f"{host.name} has an address of a local network.")
        check(address, host, internal)
        addresses.append(text)
    return addresses[:_MOST]
