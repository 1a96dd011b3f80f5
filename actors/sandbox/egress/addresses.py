"""Which of the addresses that a name leads to may be connected to. Pure.

A name is what a grant lists, and anybody who owns a name decides where it leads: to the machine itself, to its
neighbours, to the cloud's metadata. So only addresses of the public internet are used, whatever the name; unless the
grant itself lists the address. That is how to spell it:

    network: ["127.0.0.1:8080"]                     # this very address
    network: ["localhost:8080"]                     # the machine itself: it may lead to loopback, and to no more
    network: ["db.internal:5432", "10.0.0.7:5432"]  # a name, and the private address that it may lead to
"""

from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address, ip_network
from typing import Final

from understudy.policies.hosts import Address, HostPattern, Target

_INSIDE_ANOTHER: Final = tuple(
    ip_network(text)
    for text in (
        "::/96",  # IPv4-compatible, and `::`
        "::ffff:0:0/96",  # IPv4-mapped
        "::ffff:0:0:0/96",  # IPv4-translated
        "64:ff9b::/96",  # NAT64
        "64:ff9b:1::/48",
        "2001::/32",  # Teredo
        "2002::/16",  # 6to4
    )
)
"""An IPv4 address in each, which others would have to be asked about again, and no router of ours needs."""
_METADATA: Final = tuple(IPv4Address(text) for text in ("168.63.129.16", "100.100.100.200", "192.0.0.192"))
"""Of clouds that have it elsewhere than at 169.254.169.254; the first is a public address, and leads to no public."""
_ISATAP: Final = (0x00005EFE, 0x02005EFE)
_SITE_LOCAL: Final = ip_network("fec0::/10")


def what_it_is(address: Address) -> str:
    """Why nobody is led there unasked; empty for an address of the public internet."""
    if isinstance(address, IPv6Address):
        if address == IPv6Address("::1"):
            return "loopback"
        if address.is_unspecified:
            return "unspecified"
        if any(address in net for net in _INSIDE_ANOTHER) or (int(address) >> 32) & 0xFFFFFFFF in _ISATAP:
            return "an address inside another one"
        if address in _SITE_LOCAL:
            return "private"
    if address in _METADATA:
        return "a cloud's metadata"
    for name in ("loopback", "unspecified", "multicast", "link_local", "reserved"):
        if getattr(address, f"is_{name}"):
            return name.replace("_", "-")
    return "" if address.is_global else "private"


def usable(target: Target, resolved: Sequence[Address], granted: Sequence[HostPattern]) -> tuple[list[Address], str]:
    """Those that may be connected to, in order; and, if there are none, why."""
    fine: list[Address] = []
    why = f"{target.host} leads to no address"
    for address in resolved:
        refused = "" if is_listed(target, address, granted) else what_it_is(address)
        if refused:
            why = f"{target.host} leads to {address}, which is {refused}; a grant has to list the address itself"
        elif address not in fine:
            fine.append(address)
    return fine, "" if fine else why


def is_listed(target: Target, address: Address, granted: Sequence[HostPattern]) -> bool:
    """Whether the grant lists this very address, or says localhost and it is loopback."""
    there = Target(str(address), target.port, address)
    particular = [pattern for pattern in granted if not pattern.below]  # `*` lists nothing in particular
    if target.host == "localhost" and address.is_loopback:
        return any(pattern.fits(target) for pattern in particular)
    return any(pattern.fits(there) for pattern in particular)
