"""One picture from one URL: bounded in time, bytes, redirects and tries, and in where it connects.

Every hop is checked anew (addresses.py). Proxies of the environment are not used, because what
they connect to could not be checked. A server's opt-out (`X-Robots-Tag: noai`) is respected.
"""

import http.client
import io
import socket
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import SplitResult, quote, urljoin, urlsplit

from preencode.sources import addresses

T = TypeVar("T")

CONNECT_S = 10.0
MOST_REDIRECTS = 5
MOST_WAIT_S = 30.0
_CHUNK = 1 << 16
_POLL_S = 0.5
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_AGAIN = frozenset({408, 429, 500, 502, 503, 504})
_OPT_OUTS = frozenset({"noai", "noimageai", "noindex", "noimageindex"})
_HEADERS = {
    "User-Agent": "imagen-cascade (data set import)",
    "Accept": "image/*,*/*;q=0.1",
    "Accept-Encoding": "identity",
    "Connection": "close",
}


class FetchError(Exception):
    """A URL that gave no picture: `reason` to count, `detail` to read."""

    def __init__(self, reason: str, detail: str, *, again: bool = False, wait_s: float = 0) -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail
        self.again, self.wait_s = again, wait_s


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What a fetch may take."""

    timeout_s: float
    """Most seconds of one try, the look-up of its name included."""
    retries: int
    """More tries after a passing failure."""
    largest_bytes: int
    allow_private: bool = False
    backoff_s: float = 1.0
    """Wait before the second try; each further wait is twice as long."""


class Fetcher:
    """Fetches URLs, from many threads at once, until it is stopped."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._tls = ssl.create_default_context()
        self._stopped = threading.Event()

    def stop(self) -> None:
        """Let all fetches fail soon."""
        self._stopped.set()

    def get(self, url: str) -> bytes:
        """Return the body that a URL leads to. Raises FetchError."""
        for tries in range(self.limits.retries + 1):
            try:
                return self._follow(url)
            except FetchError as err:
                if not err.again or tries == self.limits.retries:
                    raise
                wait_s = max(self.limits.backoff_s * 2**tries, err.wait_s)
                if self._stopped.wait(min(wait_s, MOST_WAIT_S)):
                    raise
        raise AssertionError("the last try returns or raises")

    def _follow(self, url: str) -> bytes:
        """Do one try: follow redirects within its time."""
        deadline = time.monotonic() + self.limits.timeout_s
        for _ in range(MOST_REDIRECTS + 1):
            found = self._request(url, deadline)
            if isinstance(found, bytes):
                return found
            url = _joined(url, found)
        raise FetchError("redirects", f"more than {MOST_REDIRECTS}")

    def _request(self, url: str, deadline: float) -> bytes | str:
        """Return the body, or where a redirect leads to."""
        parts, port = _split(url)
        host = str(parts.hostname)
        raw = _explained(lambda: self._connect(host, port, deadline))
        try:
            return _explained(lambda: self._exchange(raw, parts, port, deadline))
        finally:
            raw.close()

    def _connect(self, host: str, port: int, deadline: float) -> socket.socket:
        try:
            found = addresses.checked(
                host, port, allow_private=self.limits.allow_private, timeout_s=_left(deadline)
            )
        except addresses.RefusedError as err:
            reason, detail, again = err.args
            raise FetchError(reason, detail, again=again) from None
        for i, address in enumerate(found):
            try:
                return socket.create_connection((address, port), min(CONNECT_S, _left(deadline)))
            except OSError:
                if i == len(found) - 1:
                    raise
        raise AssertionError("a checked host has an address")

    def _exchange(
        self, raw: socket.socket, parts: SplitResult, port: int, deadline: float
    ) -> bytes | str:
        host = str(parts.hostname)
        raw.settimeout(_left(deadline))
        if parts.scheme == "https":
            sock = self._tls.wrap_socket(raw, server_hostname=host)
            connection = http.client.HTTPSConnection(host, port, context=self._tls)
        else:
            sock, connection = raw, http.client.HTTPConnection(host, port)
        timed: Any = _Timed(sock, deadline, self._stopped)
        connection.sock = timed
        try:
            connection.request("GET", _target(parts), headers=_HEADERS)
            return self._answer(connection.getresponse())
        finally:
            sock.close()

    def _answer(self, response: http.client.HTTPResponse) -> bytes | str:
        status, location = response.status, response.headers.get("Location")
        if status in _REDIRECTS and location:
            return location
        if status != 200:
            wait_s = response.headers.get("Retry-After", "")
            raise FetchError(
                f"http_{status}",
                response.reason or "",
                again=status in _AGAIN,
                wait_s=int(wait_s) if wait_s.isdecimal() else 0,
            )
        told = ",".join(response.headers.get_all("X-Robots-Tag", []))
        tags = {tag.strip().lower() for tag in told.split(",")}
        if tags & _OPT_OUTS:
            raise FetchError("opted_out", f"X-Robots-Tag: {', '.join(sorted(tags & _OPT_OUTS))}")
        return self._body(response)

    def _body(self, response: http.client.HTTPResponse) -> bytes:
        most, told = self.limits.largest_bytes, response.length
        if told is not None and told > most:
            raise FetchError("too_large", f"{told} bytes, allowed are {most}")
        body = bytearray()
        while chunk := response.read(_CHUNK):
            body += chunk
            if len(body) > most:
                raise FetchError("too_large", f"more than {most} bytes")
        if told is not None and len(body) < told:
            raise FetchError("truncated", f"{len(body)} of {told} bytes", again=True)
        return bytes(body)


def _explained(work: Callable[[], T]) -> T:
    """Do `work` and turn what the network raises into a FetchError."""
    try:
        return work()
    except TimeoutError as err:
        raise FetchError("timeout", str(err) or "too slow", again=True) from None
    except ssl.SSLError as err:
        raise FetchError("tls", err.reason or str(err)) from None
    except http.client.IncompleteRead as err:
        raise FetchError("truncated", f"after {len(err.partial)} bytes", again=True) from None
    except OSError as err:
        raise FetchError("connection", err.strerror or str(err), again=True) from None
    except http.client.InvalidURL as err:
        raise FetchError("bad_url", str(err)) from None
    except (http.client.HTTPException, ValueError) as err:
        raise FetchError("bad_answer", f"{type(err).__name__}: {err}"[:200]) from None


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("the time of the try is over")
    return left


def _split(url: str) -> tuple[SplitResult, int]:
    """Return a URL's parts and port; a name in other letters as DNS has it. Raises FetchError."""
    try:
        parts = urlsplit(url.strip())
        port = parts.port or (443 if parts.scheme == "https" else 80)
        host = (parts.hostname or "").encode("ascii" if parts.netloc.isascii() else "idna").decode()
    except ValueError as err:  # UnicodeError is one
        raise FetchError("bad_url", f"{err}") from None
    if parts.scheme not in ("http", "https") or not host:
        raise FetchError("bad_url", "only http:// and https:// with a host are fetched")
    return parts._replace(netloc=f"[{host}]" if ":" in host else host), port


def _joined(url: str, location: str) -> str:
    """Return where a redirect leads to; headers are Latin-1, but many sites write UTF-8."""
    try:
        return urljoin(url, location.encode("latin-1", "replace").decode("utf8", "replace"))
    except ValueError as err:
        raise FetchError("bad_url", f"redirect: {err}") from None


def _target(parts: SplitResult) -> str:
    """Return what stands in the request line; what is not allowed there is percent-encoded."""
    path = quote(parts.path or "/", safe="/%:@!$&'()*+,;=~-._")
    query = quote(parts.query, safe="/?%:@!$&'()*+,;=~-._")
    return f"{path}?{query}" if query else path


class _Timed:
    """A socket as http.client uses it, all of whose reads together end at the deadline."""

    def __init__(self, sock: socket.socket, deadline: float, stopped: threading.Event) -> None:
        self._sock, self._deadline, self._stopped = sock, deadline, stopped

    def sendall(self, data: bytes) -> None:
        """Send a request, which is one small piece."""
        self._sock.settimeout(_left(self._deadline))
        self._sock.sendall(data)

    def makefile(self, mode: str) -> io.BufferedReader:
        """Return the stream that an answer is read from."""
        assert mode == "rb", "answers are read"
        return io.BufferedReader(_TimedReads(self._sock, self._deadline, self._stopped))

    def close(self) -> None:
        """Leave the socket to who made it: the answer is still read after this."""


class _TimedReads(io.RawIOBase):
    """A server that sends one byte a second resets the timeout of a socket for ever, not this."""

    def __init__(self, sock: socket.socket, deadline: float, stopped: threading.Event) -> None:
        self._sock, self._deadline, self._stopped = sock, deadline, stopped

    def readable(self) -> bool:
        """Tell that it can be read."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read what has come, waiting no longer than to the deadline."""
        while not self._stopped.is_set():
            self._sock.settimeout(min(_POLL_S, _left(self._deadline)))
            try:
                return self._sock.recv_into(buffer)
            except TimeoutError:
                continue
        raise TimeoutError("stopped")
