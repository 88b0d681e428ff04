"""ADDRESSES: is an address one of the public Internet? Asked by https before it connects.

Python's own tables are those of its release (3.11.7 takes fec0::/10, 192.0.0.192 and 3fff::/20 for public), and some
entries of the registries are "globally reachable" and yet no place of anybody's files. So the registries stand here.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

#: IANA's registry of special-purpose IPv4 addresses, as of 2025, whole networks only; multicast; and one address that
#: answers inside Azure's virtual machines alone.
_SPECIAL_4 = tuple(
    ipaddress.IPv4Network(text)
    for text in (
        "0.0.0.0/8 10.0.0.0/8 100.64.0.0/10 127.0.0.0/8 169.254.0.0/16 172.16.0.0/12 192.0.0.0/24 192.0.2.0/24 "
        "192.31.196.0/24 192.52.193.0/24 192.88.99.0/24 192.168.0.0/16 192.175.48.0/24 198.18.0.0/15 198.51.100.0/24 "
        "203.0.113.0/24 224.0.0.0/4 240.0.0.0/4 168.63.129.16/32"
    ).split()
)
#: All that is given to networks of the Internet; IANA's registry of special-purpose IPv6 addresses has the rest.
_GLOBAL_6 = ipaddress.IPv6Network("2000::/3")
_SPECIAL_6 = tuple(
    ipaddress.IPv6Network(text) for text in "2001::/23 2001:db8::/32 2002::/16 2620:4f:8000::/48 3fff::/20".split()
)
#: The IPv6 range whose last 32 bits are an IPv4 address that a gateway connects to (RFC 6052).
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
#: Bits 32 to 63 of an address that a tunnel (ISATAP, RFC 5214) takes for the IPv4 address in its last 32.
_ISATAP = (0x00005EFE, 0x02005EFE)


def is_public(address: Address, private_networks: Iterable[Network]) -> bool:
    """Whether https:// may connect to an address: one of the public Internet, or of a network that settings name.

    An IPv4 address wrapped into an IPv6 one (mapped, NAT64) is judged as what it wraps.
    """
    if isinstance(address, ipaddress.IPv6Address):
        wrapped = address.ipv4_mapped
        if wrapped is None and address in _NAT64:
            wrapped = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        address = wrapped or address
    if any(address in network for network in private_networks):
        return True
    if isinstance(address, ipaddress.IPv4Address):
        return not any(address in network for network in _SPECIAL_4)
    if int(address) >> 32 & 0xFFFFFFFF in _ISATAP:
        return False
    return address in _GLOBAL_6 and not any(address in network for network in _SPECIAL_6)
