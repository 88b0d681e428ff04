"""Which addresses https:// may connect to: none from IANA's registries of special-purpose addresses."""

from __future__ import annotations

import ipaddress

import pytest
from pipeq_worker.stores.addresses import is_public

#: https://www.iana.org/assignments/iana-ipv4-special-registry and ...-ipv6-special-registry, every entry as of 2025,
#: the globally reachable ones too; then what other registries keep for special purposes.
SPECIAL = """
0.0.0.0/8 0.0.0.0/32 10.0.0.0/8 100.64.0.0/10 127.0.0.0/8 169.254.0.0/16 172.16.0.0/12 192.0.0.0/24 192.0.0.0/29
192.0.0.8/32 192.0.0.9/32 192.0.0.10/32 192.0.0.170/32 192.0.0.171/32 192.0.2.0/24 192.31.196.0/24 192.52.193.0/24
192.88.99.0/24 192.88.99.2/32 192.168.0.0/16 192.175.48.0/24 198.18.0.0/15 198.51.100.0/24 203.0.113.0/24 240.0.0.0/4
255.255.255.255/32
::1/128 ::/128 ::ffff:0:0/104 64:ff9b:1::/48 100::/64 100:0:0:1::/64 2001::/23 2001::/32 2001:1::1/128 2001:1::2/128
2001:1::3/128 2001:2::/48 2001:3::/32 2001:4:112::/48 2001:10::/28 2001:20::/28 2001:30::/28 2001:db8::/32 2002::/16
2620:4f:8000::/48 3fff::/20 5f00::/16 fc00::/7 fe80::/10
224.0.0.0/4 ff00::/8 fec0::/10 ::/96 ::ffff:0:0:0/96 64:ff9b::7f00:0/104 64:ff9b::a9fe:0/112 4000::/2 8000::/1 200::/7
"""


@pytest.mark.parametrize("text", SPECIAL.split())
def test_no_address_of_a_special_registry_is_public(text: str) -> None:
    network = ipaddress.ip_network(text)
    step = max(1, network.num_addresses // 97)
    for at in (0, network.num_addresses - 1, *range(0, network.num_addresses, step)):
        assert not is_public(network[at], ()), network[at]
        if network.version == 4:
            for wrapped in (f"::ffff:{network[at]}", f"64:ff9b::{network[at]}"):
                assert not is_public(ipaddress.ip_address(wrapped), ()), wrapped


@pytest.mark.parametrize(
    "text",
    [
        # Just outside of the entries above.
        *"1.0.0.0 9.255.255.255 11.0.0.0 100.63.255.255 100.128.0.0 126.255.255.255 128.0.0.0 169.253.255.255".split(),
        *"169.255.0.0 172.15.255.255 172.32.0.0 191.255.255.255 192.0.1.0 192.0.3.0 192.31.197.0".split(),
        *"192.88.98.255 192.88.100.0 192.167.255.255 192.169.0.0 198.17.255.255 198.20.0.0 223.255.255.255".split(),
        *"2000::1 2001:200:: 2001:db7:: 2001:db9:: 2001:ffff:: 2003:: 2606:4700::1111 2620:4f:7fff:: 3ffe::".split(),
    ],
)
def test_what_lies_beside_them_is(text: str) -> None:
    assert is_public(ipaddress.ip_address(text), ())


def test_addresses_inside_of_clouds_and_tunnels() -> None:
    """Metadata addresses of Oracle, Alibaba, AWS and Azure; an IPv4 address inside a tunnel's IPv6 address."""
    for text in (
        "192.0.0.192",
        "100.100.100.200",
        "169.254.169.254",
        "fd00:ec2::254",
        "168.63.129.16",
        "2606:4700::5efe:10.0.0.1",
        "2606:4700::200:5efe:10.0.0.1",
    ):
        assert not is_public(ipaddress.ip_address(text), ()), text


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("93.184.215.14", True),
        ("2606:4700::1111", True),
        ("127.0.0.1", False),
        ("127.9.9.9", False),
        ("0.0.0.0", False),
        ("10.1.2.3", False),
        ("172.31.0.1", False),
        ("192.168.1.1", False),
        ("169.254.169.254", False),
        ("100.64.0.1", False),
        ("192.0.2.1", False),
        ("198.18.0.1", False),
        ("224.0.0.1", False),
        ("240.0.0.1", False),
        ("255.255.255.255", False),
        ("::", False),
        ("::1", False),
        ("::127.0.0.1", False),
        ("fe80::1", False),
        ("fc00::1", False),
        ("fd00:ec2::254", False),
        ("ff02::1", False),
        ("2001:db8::1", False),
        ("::ffff:127.0.0.1", False),
        ("::ffff:169.254.169.254", False),
        ("::ffff:93.184.215.14", True),
        ("64:ff9b::10.0.0.1", False),
        ("64:ff9b::93.184.215.14", True),
        ("64:ff9b:1::10.0.0.1", False),
        ("2002:7f00:1::", False),
    ],
)
def test_public_addresses(address: str, expected: bool) -> None:
    assert is_public(ipaddress.ip_address(address), ()) is expected


def test_private_networks_that_settings_name() -> None:
    networks = (ipaddress.ip_network("10.0.0.0/8"), ipaddress.ip_network("fd12::/16"))
    for address in ("10.1.2.3", "::ffff:10.1.2.3", "fd12::1"):
        assert is_public(ipaddress.ip_address(address), networks)
    for address in ("127.0.0.1", "fd13::1", "169.254.169.254"):
        assert not is_public(ipaddress.ip_address(address), networks)
