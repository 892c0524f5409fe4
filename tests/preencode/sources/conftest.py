import contextlib
import io
import json
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from PIL import Image

from imagen import storage
from imagen.data import tars
from preencode import importing


@pytest.fixture(autouse=True)
def no_name_server(monkeypatch) -> None:
    """Numbers and `localhost` are the only addresses: no test asks the resolver of the machine."""
    real = socket.getaddrinfo

    def numeric(host, port, family=0, type=0, proto=0, flags=0):  # noqa: A002 - as it is called
        host = "127.0.0.1" if host == "localhost" else host
        try:
            return real(host, port, family, type, proto, flags | socket.AI_NUMERICHOST)
        except socket.gaierror:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known") from None

    monkeypatch.setattr(socket, "getaddrinfo", numeric)
    monkeypatch.setattr(socket, "getfqdn", lambda name="": name)


@pytest.fixture
def picture() -> Callable[..., bytes]:
    """A maker of encoded pictures: `picture(7)` is another PNG than `picture(8)`."""

    def make(shade: int = 0, kind: str = "png", mode: str = "RGB", side: int = 8) -> bytes:
        out = io.BytesIO()
        Image.new("RGB", (side, side), (shade % 256, shade // 256, 9)).convert(mode).save(out, kind)
        return out.getvalue()

    return make


@pytest.fixture
def photos(tmp_path, picture) -> Callable[..., Path]:
    """A folder of captioned pictures: `photos(12)`; the caption of the i-th is `photo i`."""

    def make(count: int) -> Path:
        folder = tmp_path / "photos"
        for i in range(count):
            path = folder / f"album{i % 3}" / f"IMG {i:03d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(picture(i))
            path.with_suffix(".txt").write_text(f"photo {i}\n")
        return folder

    return make


@pytest.fixture
def folder(config, tmp_path):
    """A config that imports a folder, `folder(path, "shard_samples: 3")`."""

    def make(path, *keys, out="run"):
        section = ", ".join(["name: folder", f"path: {path}", *keys])
        return config(f"source={{{section}}}", f"out={tmp_path}/{out}")

    return make


@dataclass
class Imports:
    """What an import left in its folder."""

    manifest: dict
    failures: list[dict]
    samples: dict[str, dict[str, bytes]]
    """Key -> extension -> bytes, in the order of tars."""

    @property
    def captions(self) -> list[str]:
        return [parts["txt"].decode() for parts in self.samples.values()]


@pytest.fixture
def read_import() -> Callable[..., Imports]:
    """Read back an import: the tars that its manifest lists, and its failures."""

    def read(config) -> Imports:
        samples: dict[str, dict[str, bytes]] = {}
        for tar in importing.list_tars(config):
            content = tars.open_tar(tar.path)
            for member in tars.list_members(content, tar.path).members:
                key, extension = tars.split_name(member.name) or ("", "")
                data = content[member.offset : member.offset + member.size]
                assert extension not in samples.setdefault(key, {}), f"{member.name} comes twice"
                samples[key][extension] = data
        failures = storage.join(config.tars, importing.FAILURES)
        lines = storage.get(failures).splitlines() if storage.exists(failures) else []
        body = json.loads(storage.get(importing.manifest_path(config)))
        return Imports(body, [json.loads(line) for line in lines], samples)

    return read


@dataclass
class Site:
    """A web site on loopback: what it answers, and what it was asked."""

    address: str
    server: ThreadingHTTPServer
    answers: dict[str, Callable[[BaseHTTPRequestHandler], None]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    hosts: list[str] = field(default_factory=list)

    def serve(
        self, path: str, body: bytes, status: int = 200, headers: dict[str, str] | None = None
    ) -> str:
        """Answer a path with a body; return its URL."""

        def answer(request: BaseHTTPRequestHandler) -> None:
            request.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
                request.send_header(name, value)
            request.end_headers()
            request.wfile.write(body)

        return self.script(path, answer)

    def script(self, path: str, answer: Callable[[BaseHTTPRequestHandler], None]) -> str:
        """Answer a path with a function; return its URL."""
        self.answers[path] = answer
        return f"{self.address}{path}"


@pytest.fixture
def site() -> Iterator[Site]:
    """A real HTTP server on loopback, one thread a request."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found.asked.append(self.path)
            found.hosts.append(self.headers["Host"])
            answer = found.answers.get(self.path)
            if answer is None:
                self.send_error(404)
            else:
                with contextlib.suppress(OSError):  # the fetcher hung up, as it should
                    answer(self)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    found = Site(f"http://127.0.0.1:{server.server_port}", server)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield found
    server.shutdown()
    thread.join()
    server.server_close()
