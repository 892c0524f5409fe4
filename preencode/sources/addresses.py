"""Which network addresses may be fetched from: by default none of a private network.

A list of URLs comes from strangers. A name in it can point to the machine itself, to a cloud's
metadata service (169.254.169.254) or to a neighbour, and can do so at the second look-up only (DNS
rebinding). So a name is looked up once, its addresses are checked, and the connection is made to
an address that was checked.
"""

import ipaddress
import socket

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


class RefusedError(Exception):
    """Carries (reason, detail, may it be better soon) of a host that is not connected to."""


def checked(host: str, port: int, *, allow_private: bool) -> list[str]:
    """Return the addresses of a host that may be connected to. Raises RefusedError."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except socket.gaierror as err:
        raise RefusedError(
            "dns", f"{host}: {err.strerror}", err.errno == socket.EAI_AGAIN
        ) from None
    except UnicodeError as err:
        raise RefusedError("bad_url", f"{host}: {err}", False) from None
    addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
    good = [a for a in addresses if allow_private or is_public(a)]
    if not good:
        raise RefusedError("private_address", f"{host} is {', '.join(addresses)}", False)
    return good


def is_public(text: str) -> bool:
    """Tell whether an address is one of the public Internet, also inside an IPv6 wrapping."""
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return False
    return all(a.is_global and not a.is_multicast for a in (address, *_wrapped(address)))


def _wrapped(address: Address) -> list[Address]:
    """Return the IPv4 addresses that an IPv6 address stands for."""
    if isinstance(address, ipaddress.IPv4Address):
        return []
    inner = [address.ipv4_mapped, address.sixtofour, *(address.teredo or ())]
    if address in _NAT64:
        inner.append(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
    return [a for a in inner if a is not None]
