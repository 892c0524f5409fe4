"""Which network addresses may be fetched from: by default none of a private network.

A list of URLs comes from strangers. A name in it can point to the machine itself, to a cloud's
metadata service (169.254.169.254) or to a neighbour, and can do so at the second look-up only (DNS
rebinding). So a name is looked up once, its addresses are checked, and the connection is made to
an address that was checked.
"""

import ipaddress
import queue
import socket
import threading
from typing import Any

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_TRANSLATED = [
    ipaddress.ip_network(text) for text in ("::/96", "::ffff:0:0:0/96", "64:ff9b:1::/48")
]
"""Wrappings of IPv4 addresses that no public host is reached by (RFC 4291, 2765, 8215)."""


class RefusedError(Exception):
    """Carries (reason, detail, may it be better soon) of a host that is not connected to."""


def checked(host: str, port: int, *, allow_private: bool, timeout_s: float) -> list[str]:
    """Return the addresses of a host that may be connected to.

    Raises RefusedError, TimeoutError when the name server takes longer.
    """
    try:
        found = _looked_up(host, port, timeout_s)
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


def _looked_up(host: str, port: int, timeout_s: float) -> list[Any]:
    """Do what getaddrinfo() does, which no timeout ends, in a thread that may be left behind."""
    answers: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def ask() -> None:
        try:
            answers.put(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        except (OSError, ValueError) as err:  # UnicodeError is a ValueError
            answers.put(err)

    threading.Thread(target=ask, name="look-up", daemon=True).start()
    try:
        found = answers.get(timeout=timeout_s)
    except queue.Empty:
        raise TimeoutError(f"no name server said where {host} is") from None
    if isinstance(found, Exception):
        raise found
    return found


def is_public(text: str) -> bool:
    """Tell whether an address is one of the public Internet, also inside an IPv6 wrapping."""
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return False
    return all(_is_global(a) for a in (address, *_wrapped(address)))


def _is_global(address: Address) -> bool:
    if isinstance(address, ipaddress.IPv6Address) and (
        address.is_site_local or any(address in network for network in _TRANSLATED)
    ):
        return False
    return address.is_global and not address.is_multicast


def _wrapped(address: Address) -> list[Address]:
    """Return the IPv4 addresses that an IPv6 address stands for."""
    if isinstance(address, ipaddress.IPv4Address):
        return []
    inner = [address.ipv4_mapped, address.sixtofour, *(address.teredo or ())]
    if address in _NAT64:
        inner.append(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
    return [a for a in inner if a is not None]
