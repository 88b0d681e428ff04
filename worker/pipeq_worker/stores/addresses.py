"""ADDRESSES: tells whether an address belongs to the public Internet. Used by https before it connects.

Python's own tables are those of its release (3.11.7 treats fec0::/10, 192.0.0.192 and 3fff::/20 as public), and some
entries of IANA's registries are marked "globally reachable" although they do not hold files. So the registries are
copied here.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

#: IANA's registry of special-purpose IPv4 addresses, as of 2025, whole networks only; multicast; and one address that
#: answers only inside Azure's virtual machines.
_SPECIAL_4 = tuple(
    ipaddress.IPv4Network(text)
    for text in (
        "0.0.0.0/8 10.0.0.0/8 100.64.0.0/10 127.0.0.0/8 169.254.0.0/16 172.16.0.0/12 192.0.0.0/24 192.0.2.0/24 "
        "192.31.196.0/24 192.52.193.0/24 192.88.99.0/24 192.168.0.0/16 192.175.48.0/24 198.18.0.0/15 198.51.100.0/24 "
        "203.0.113.0/24 224.0.0.0/4 240.0.0.0/4 168.63.129.16/32"
    ).split()
)
#: The range of all public IPv6 addresses, of which IANA's registry of special-purpose addresses excludes the networks
#: below.
_GLOBAL_6 = ipaddress.IPv6Network("2000::/3")
_SPECIAL_6 = tuple(
    ipaddress.IPv6Network(text) for text in "2001::/23 2001:db8::/32 2002::/16 2620:4f:8000::/48 3fff::/20".split()
)
#: The IPv6 range whose last 32 bits are an IPv4 address to which a gateway connects (RFC 6052).
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
#: Values of bits 32 to 63 that mark a tunnel (ISATAP, RFC 5214) to the IPv4 address in the last 32 bits.
_ISATAP = (0x00005EFE, 0x02005EFE)


def is_public(address: Address, private_networks: Iterable[Network]) -> bool:
    """Whether https:// may connect to an address: it is public, or in a private network that the settings allow.

    An IPv6 address that wraps an IPv4 one (mapped, NAT64) is treated as the IPv4 address.
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
