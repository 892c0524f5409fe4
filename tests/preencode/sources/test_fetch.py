import datetime as dt
import ipaddress
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler

import pytest

from preencode.sources import addresses, fetch
from preencode.sources.fetch import Fetcher, FetchError, Limits

BODY = bytes(range(256)) * 40


@pytest.fixture
def fetcher() -> Callable[..., Fetcher]:
    def make(**limits) -> Fetcher:
        usual = {"timeout_s": 5.0, "retries": 2, "largest_bytes": 20_000, "backoff_s": 0.001}
        return Fetcher(Limits(**{**usual, "allow_private": True, **limits}))

    return make


def failure(fetcher: Fetcher, url: str) -> tuple[str, str]:
    with pytest.raises(FetchError) as caught:
        fetcher.get(url)
    return caught.value.reason, caught.value.detail


@pytest.fixture
def hang() -> Iterator[threading.Event]:
    """What a server that never answers waits for: the end of the test."""
    ended = threading.Event()
    yield ended
    ended.set()


def test_a_body_arrives_whole(site, fetcher):
    assert fetcher().get(site.serve("/a", BODY)) == BODY


def test_odd_urls_are_asked_for_as_http_wants_them(site, fetcher):
    site.serve("/a%20b/%C3%A4.png?q=%22%25%C3%BC", BODY)
    url = f"  {site.address}/a b/ä.png?q=%22%25ü#part\n"
    assert fetcher().get(url) == BODY


@pytest.mark.parametrize(
    "url",
    ["", "photo.jpg", "ftp://a/b", "file:///etc/passwd", "http://", "http://a:99999/", "http://[a"],
)
def test_only_http_is_fetched(fetcher, url):
    assert failure(fetcher(), url)[0] == "bad_url"


@pytest.mark.parametrize("status", [400, 403, 404, 410])
def test_a_final_answer_is_not_asked_for_twice(site, fetcher, status):
    url = site.serve("/a", b"no", status)
    assert failure(fetcher(), url)[0] == f"http_{status}"
    assert len(site.asked) == 1


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_a_passing_failure_is_tried_again(site, fetcher, status):
    url = site.serve("/a", b"later", status)

    def better(request: BaseHTTPRequestHandler) -> None:
        site.serve("/a", BODY)
        request.send_error(status)

    assert failure(fetcher(), url)[0] == f"http_{status}"
    assert len(site.asked) == 3  # the first and two more
    site.script("/a", better)
    assert fetcher().get(url) == BODY


def test_waits_double_and_a_server_may_ask_for_longer(site, fetcher, monkeypatch):
    waits = []
    made = fetcher(retries=3, backoff_s=1.0)
    monkeypatch.setattr(made._stopped, "wait", lambda wait_s: waits.append(wait_s))
    url = site.serve("/a", b"", 503)
    assert failure(made, url)[0] == "http_503"
    assert waits == [1, 2, 4]
    waits.clear()
    site.serve("/a", b"", 429, {"Retry-After": "3"})
    failure(made, url)
    assert waits == [3, 3, 4]
    waits.clear()
    site.serve("/a", b"", 429, {"Retry-After": "86400"})
    failure(made, url)
    assert waits == [fetch.MOST_WAIT_S] * 3


def test_a_server_that_never_answers_is_left(site, fetcher, hang):
    url = site.script("/a", lambda _: bool(hang.wait(60)) and None)
    assert failure(fetcher(timeout_s=0.2, retries=1), url)[0] == "timeout"
    assert len(site.asked) == 2


def test_a_server_that_sends_byte_by_byte_is_left_when_the_time_is_over(site, fetcher, hang):
    def drip(request: BaseHTTPRequestHandler) -> None:
        request.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n")
        while not hang.wait(0.01):
            request.wfile.write(b"x")
            request.wfile.flush()

    url = site.script("/a", drip)
    assert failure(fetcher(timeout_s=0.3, retries=0), url)[0] == "timeout"


def test_a_stopped_fetcher_gives_up_at_once(site, fetcher, hang):
    made = fetcher(timeout_s=50.0, retries=5, backoff_s=30.0)

    def stop(request: BaseHTTPRequestHandler) -> None:
        made.stop()
        hang.wait(60)

    assert failure(made, site.script("/a", stop)) == ("timeout", "stopped")
    assert len(site.asked) == 1


def test_a_picture_that_is_told_to_be_too_large_is_not_read(site, fetcher):
    url = site.serve("/a", BODY, headers={"Content-Length": "20001"})
    assert failure(fetcher(), url) == ("too_large", "20001 bytes, allowed are 20000")


def test_a_picture_that_grows_too_large_is_left(site, fetcher):
    def endless(request: BaseHTTPRequestHandler) -> None:
        request.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            request.wfile.write(bytes(4096))

    url = site.script("/a", endless)
    assert failure(fetcher(), url) == ("too_large", "more than 20000 bytes")


def test_half_a_picture_is_tried_again_and_then_refused(site, fetcher):
    url = site.serve("/a", BODY, headers={"Content-Length": str(len(BODY) + 1)})
    assert failure(fetcher(), url) == ("truncated", "10240 of 10241 bytes")
    assert len(site.asked) == 3


def test_a_chunked_answer_that_is_cut_is_refused(site, fetcher):
    def cut(request: BaseHTTPRequestHandler) -> None:
        request.wfile.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nff\r\nabc")

    assert failure(fetcher(), site.script("/a", cut))[0] == "truncated"


def test_what_is_no_http_is_told(site, fetcher):
    url = site.script("/a", lambda request: request.wfile.write(b"SSH-2.0-server\r\n") and None)
    assert failure(fetcher(), url)[0] == "bad_answer"


def test_a_port_where_nobody_listens_is_told(fetcher):
    assert failure(fetcher(), "http://127.0.0.1:1/a")[0] == "connection"


def test_a_name_server_that_never_answers_is_left(fetcher, hang, monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: hang.wait(60) and [])
    reason, detail = failure(fetcher(timeout_s=0.1, retries=0), "http://slow.example/a")
    assert (reason, detail) == ("timeout", "no name server said where slow.example is")


def test_a_host_that_does_not_exist_is_told(fetcher):
    assert failure(fetcher(), "http://no-such-host.invalid/a")[0] == "dns"


@pytest.mark.parametrize("tag", ["noai", "noindex, NoImageAI"])
def test_a_site_that_opted_out_is_left_alone(site, fetcher, tag):
    url = site.serve("/a", BODY, headers={"X-Robots-Tag": tag})
    assert failure(fetcher(), url)[0] == "opted_out"


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_followed(site, fetcher, status):
    site.serve("/pictures/b", BODY)
    url = site.serve("/pictures/a", b"", status, {"Location": "b"})
    assert fetcher().get(url) == BODY


def test_redirects_in_a_circle_end(site, fetcher):
    url = site.serve("/a", b"", 302, {"Location": "/a"})
    assert failure(fetcher(), url) == ("redirects", "more than 5")
    assert len(site.asked) == 6


def test_private_addresses_are_refused_by_default_and_not_even_connected_to(site, fetcher):
    url = site.serve("/a", BODY)
    assert failure(fetcher(allow_private=False), url) == (
        "private_address",
        "127.0.0.1 is 127.0.0.1",
    )
    assert site.asked == []


@pytest.mark.parametrize("to", ["http://127.0.0.2:{port}/a", "//127.0.0.2:{port}/a"])
def test_a_redirect_to_a_private_address_is_refused(site, fetcher, monkeypatch, to):
    monkeypatch.setattr(addresses, "is_public", lambda address: address == "127.0.0.1")
    port = site.address.rpartition(":")[2]
    url = site.serve("/a", b"", 302, {"Location": to.format(port=port)})
    assert failure(fetcher(allow_private=False), url)[0] == "private_address"
    assert len(site.asked) == 1


def test_a_redirect_to_another_protocol_is_refused(site, fetcher):
    url = site.serve("/a", b"", 302, {"Location": "file:///etc/passwd"})
    assert failure(fetcher(), url)[0] == "bad_url"


def named(monkeypatch, host: str, address: str) -> list[str]:
    """Let `host` be `address` at the first look-up and this machine's neighbour later."""
    looked_up, real = [], socket.getaddrinfo

    def rebinding(asked: str, port: int, *rest: object, **more: object) -> list:
        if asked != host:
            return real(asked, port, *rest, **more)
        looked_up.append(asked)
        return real(address if len(looked_up) == 1 else "127.0.0.3", port, *rest, **more)

    monkeypatch.setattr(socket, "getaddrinfo", rebinding)
    return looked_up


def test_a_name_is_looked_up_once_and_connected_to_where_it_was_checked(site, fetcher, monkeypatch):
    looked_up = named(monkeypatch, "rebind.example", "127.0.0.1")
    monkeypatch.setattr(addresses, "is_public", lambda address: address == "127.0.0.1")
    port = site.address.rpartition(":")[2]
    site.serve("/a", BODY)
    assert fetcher(allow_private=False).get(f"http://rebind.example:{port}/a") == BODY
    assert looked_up == ["rebind.example"]
    assert site.hosts == [f"rebind.example:{port}"]  # the site still learns what it was asked for


def test_a_certificate_is_checked_against_the_name_not_the_address(
    site, fetcher, monkeypatch, tmp_path
):
    cert, key = certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    site.server.socket = context.wrap_socket(site.server.socket, server_side=True)
    port = site.address.rpartition(":")[2]
    site.serve("/a", BODY)
    named(monkeypatch, "pictures.example", "127.0.0.1")
    made = fetcher(retries=0)
    url = f"https://pictures.example:{port}/a"
    assert failure(made, url)[0] == "tls"  # nobody known signed it
    made._tls.load_verify_locations(cert)
    named(monkeypatch, "pictures.example", "127.0.0.1")
    assert made.get(url) == BODY
    assert failure(made, f"https://localhost:{port}/a")[0] == "tls"  # it is for another name
    assert site.asked == ["/a"]


def certificate(folder) -> tuple[str, str]:
    """Write a certificate of its own for `pictures.example`; return its and its key's path."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "pictures.example")])
    now = dt.datetime.now(dt.UTC)
    names = [x509.DNSName("pictures.example"), x509.IPAddress(ipaddress.ip_address("127.0.0.9"))]
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    (folder / "cert.pem").write_bytes(made.public_bytes(pem))
    secret = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "key.pem").write_bytes(secret)
    return str(folder / "cert.pem"), str(folder / "key.pem")


def test_a_redirect_that_is_no_url_is_told(site, fetcher):
    url = site.serve("/a", b"", 302, {"Location": "http://[oops"})
    assert failure(fetcher(), url)[0] == "bad_url"


def test_a_redirect_may_be_in_utf8(site, fetcher):
    site.serve("/%C3%A4.png", BODY)

    def redirect(request: BaseHTTPRequestHandler) -> None:
        request.wfile.write("HTTP/1.1 302 Found\r\nLocation: /ä.png\r\n\r\n".encode())

    assert fetcher().get(site.script("/a", redirect)) == BODY


@pytest.mark.parametrize(("errno", "tries"), [(socket.EAI_NONAME, 1), (socket.EAI_AGAIN, 3)])
def test_a_name_is_looked_up_again_only_when_the_name_server_is_the_trouble(
    fetcher, monkeypatch, errno, tries
):
    asked = []

    def fail(*_: object, **__: object) -> None:
        asked.append(1)
        raise socket.gaierror(errno, "no answer")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    assert failure(fetcher(), "http://pictures.example/a")[0] == "dns"
    assert len(asked) == tries
