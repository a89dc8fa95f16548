"""Which addresses are never dialled for a user: those at which clouds hand out credentials of the machine itself."""

from __future__ import annotations

import ipaddress
from typing import Final

_NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")
_OTHERS: Final = frozenset({ipaddress.IPv6Address("fd00:ec2::254"), ipaddress.IPv4Address("100.100.100.200")})
"""Metadata of clouds that is not link-local."""


def is_link_local(address: str) -> bool:
    """True for link-local addresses, however they are written, and for metadata at other ones; False for no address."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(found, ipaddress.IPv6Address):
        inner = found.ipv4_mapped or found.sixtofour or (found.teredo or (None, None))[1]
        if inner is None and (found in _NAT64 or int(found) >> 32 == 0):
            inner = ipaddress.IPv4Address(int(found) & 0xFFFF_FFFF)
        if inner is not None and (inner.is_link_local or inner in _OTHERS):
            return True
    return found.is_link_local or found in _OTHERS
