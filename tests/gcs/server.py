"""A GCS server for tests: the JSON API as gcsfs and google-cloud-storage use it, over real HTTP.

    python tests/gcs/server.py --bucket data --faults '[{"kind": "any", "probability": 0.05}]'

prints its endpoint, for STORAGE_EMULATOR_HOST. It ends with the process that started it. What goes
wrong on purpose is told with POST /_control/faults, see faults.py; `gcs` in tests/conftest.py does.
"""

import argparse
import json
import os
import re
import socket
import struct
import sys
import threading
import time
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from api import Answer, Api, Request
from bucket_store import Refused
from faults import Fault, Plan


@dataclass
class Access:
    """Who may do what; by default nobody is asked."""

    tokens: list[str] | None = None
    """Bearer tokens that are known; None: none is needed."""
    denied: list[str] = field(default_factory=list)
    """Buckets that nobody may use."""
    issues: str = "issued-token"
    """What the token endpoints hand out; empty: they refuse."""
    seen: list[str] = field(default_factory=list)
    """Authorization headers that came, each once."""

    def check(self, request: Request) -> None:
        """Raise Refused: 401 for an unknown token, 403 for a bucket that is denied."""
        token = request.headers.get("authorization", "").removeprefix("Bearer ")
        if token and token not in self.seen:
            self.seen.append(token)
        if self.tokens is not None and token not in self.tokens:
            who = "Anonymous caller does not have storage.objects.get access"
            raise Refused(401, "Invalid Credentials" if token else who, "authError")
        if any(re.search(rf"/b/{re.escape(b)}(/|$)", request.path) for b in self.denied):
            text = "someone@project does not have storage.objects.get access to the bucket."
            raise Refused(403, f"{text} Permission denied on resource.", "forbidden")


class Server(ThreadingHTTPServer):
    """Threads of one process; each connection has its own."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.api, self.plan, self.access = Api(self.endpoint), Plan(), Access()
        self.closing = threading.Event()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of clients that went."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)

    def control(self, request: Request) -> Answer:
        """Answer the tests: what goes wrong from now on, who may come in, what there is."""
        body = json.loads(request.body or b"{}")
        if request.path == "/_control/faults":
            self.plan.set(body["rules"], body["seed"])
        elif request.path == "/_control/access":
            self.access = Access(**body)
        elif request.path == "/_control/objects":
            found = self.api.store.objects(body["bucket"])
            shown = {n: {"bytes": len(o.data), "crc32c": o.crc32c} for n, o in found.items()}
            return Answer(200, json.dumps(shown).encode())
        counts = {**self.plan.counts(), "tokens": self.access.seen}
        return Answer(200, json.dumps(counts).encode())

    def answer(self, request: Request) -> Answer:
        """Return what is sent back."""
        try:
            if request.path.startswith("/_control/"):
                return self.control(request)
            if (token := self.token(request)) is not None:
                return token
            self.access.check(request)
            return self.api.answer(request)
        except Refused as err:
            return refusal(err.status, err.message, err.reason)

    def token(self, request: Request) -> Answer | None:
        """Answer as the places where tokens come from: OAuth, STS, the metadata of a machine."""
        metadata = "/computeMetadata/v1"
        if request.path not in ("/token", "/sts") and not (
            request.path.rstrip("/").startswith(metadata) or request.path == "/"
        ):
            return None
        if not self.access.issues:
            return Answer(400, b'{"error": "invalid_grant", "error_description": "unknown key"}')
        body = {"access_token": self.access.issues, "expires_in": 3600, "token_type": "Bearer"}
        if request.path == "/sts":
            body["issued_token_type"] = "urn:ietf:params:oauth:token-type:access_token"
        flavor = {"Metadata-Flavor": "Google"}
        if request.path.endswith("project-id"):
            return Answer(200, b"some-project", flavor | {"Content-Type": "text/plain"})
        if request.path.rstrip("/").endswith("default") or "universe" in request.path:
            found = {"email": "node@project", "scopes": ["x"], "aliases": ["default"]}
            data = b"googleapis.com" if "universe" in request.path else json.dumps(found).encode()
            kind = "text/plain" if "universe" in request.path else "application/json"
            return Answer(200, data, flavor | {"Content-Type": kind})
        return Answer(200, json.dumps(body).encode(), flavor)


def refusal(status: int, message: str, reason: str = "") -> Answer:
    """Return an error as GCS words it."""
    one = {"message": message, "domain": "global", "reason": reason or "backendError"}
    body = {"error": {"code": status, "message": message, "errors": [one]}}
    return Answer(status, json.dumps(body).encode())


class Handler(BaseHTTPRequestHandler):
    """Reads a request, answers it, or does to it what the plan says."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Server

    def handle_any(self) -> None:
        """Handle one request."""
        parts = urlsplit(self.path)
        query = dict(parse_qsl(parts.query, keep_blank_values=True))
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = Request(self.command, parts.path, query, headers, self._body(headers))
        fault = Fault()
        if not parts.path.startswith("/_control/"):
            fault = self.server.plan.next(self.command, unquote(self.path))
        self._wait(fault.latency)
        if fault.kind in ("reset", "hang"):
            self._wait(fault.seconds)
            return self._leave(abrupt=fault.kind == "reset")
        if fault.kind == "status":
            answer = refusal(fault.status, HTTPStatus(fault.status).phrase)
        else:
            answer = self.server.answer(request)
        if fault.kind == "lost":
            return self._leave()
        return self._send(answer, fault)

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = handle_any

    def _body(self, headers: dict[str, str]) -> bytes:
        if headers.get("transfer-encoding", "").lower() != "chunked":
            return self.rfile.read(int(headers.get("content-length") or 0))
        pieces = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            pieces.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(pieces)

    def _wait(self, seconds: float) -> None:
        if seconds:
            self.server.closing.wait(seconds)

    def _leave(self, abrupt: bool = False) -> None:
        """End the connection without an answer; abruptly: by a reset."""
        self.close_connection = True
        if abrupt:
            now = struct.pack("ii", 1, 0)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, now)
            self.connection.close()

    def _send(self, answer: Answer, fault: Fault) -> None:
        body = b"" if self.command == "HEAD" else answer.body
        lines = [f"HTTP/1.1 {answer.status} {phrase(answer.status)}"]
        headers = {"Content-Type": "application/json; charset=UTF-8", **answer.headers}
        headers["Content-Length"] = str(len(answer.body))
        lines += [f"{name}: {value}" for name, value in headers.items()]
        head = ("\r\n".join(lines) + "\r\n\r\n").encode()
        if fault.kind == "truncate":
            self.wfile.write(head + body[: len(body) // 2])
            self._leave()
        elif fault.kind == "slow":
            self.wfile.write(head)
            for start in range(0, len(body), step := max(1, len(body) // 10)):
                self._wait(fault.seconds / 10)
                self.wfile.write(body[start : start + step])
        else:
            self.wfile.write(head + body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Say nothing."""


def phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Client Closed Request"


def main() -> None:
    """Serve until the parent is gone."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--bucket", action="append", default=[])
    parser.add_argument("--faults", default="[]", help="JSON list of rules, see faults.py")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    parent = os.getppid()
    server = Server(args.port)
    for bucket in args.bucket:
        server.api.store.make_bucket(bucket)
    server.plan.set(json.loads(args.faults), args.seed)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(server.endpoint, flush=True)
    try:
        while os.getppid() == parent:
            time.sleep(0.5)
    except KeyboardInterrupt:
        pass


if __name__ == "__main__":
    main()
