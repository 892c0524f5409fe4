"""The JSON API of GCS: which request means what, and how answers look."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from bucket_store import BucketStore, Object, Refused, Upload

_PREFIX = r"(?:/(?:storage|download/storage)/v1)"
_ONE = r"/b/(?P<bucket>[^/]+)/o/(?P<name>[^/]+)"


@dataclass(frozen=True)
class Request:
    """An HTTP request, read to its end."""

    method: str
    path: str
    """Percent-encoded, without the query."""
    query: dict[str, str]
    headers: dict[str, str]
    """By lower-case name."""
    body: bytes

    def json(self) -> dict[str, Any]:
        return json.loads(self.body or b"{}")


@dataclass(frozen=True)
class Answer:
    """An HTTP answer."""

    status: int
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


def shown(value: Any, **headers: str) -> Answer:
    return Answer(200, json.dumps(value).encode(), headers)


class Api:
    """Answers requests from what the store keeps."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint, self.store = endpoint, BucketStore()
        self.routes: list[tuple[str, str, Callable[..., Answer]]] = [
            (
                "POST|PUT|DELETE",
                r"(?:/resumable)?/upload/storage/v1/b/(?P<bucket>[^/]+)/o",
                self.upload,
            ),
            ("GET", f"{_PREFIX}/b", self.buckets),
            ("POST", f"{_PREFIX}/b", self.make_bucket),
            ("GET|DELETE|PATCH", f"{_PREFIX}/b/(?P<bucket>[^/]+)", self.bucket),
            ("GET", f"{_PREFIX}/b/(?P<bucket>[^/]+)/o", self.listing),
            ("GET|DELETE|PATCH|PUT", f"{_PREFIX}{_ONE}", self.one),
            (
                "POST",
                f"{_PREFIX}{_ONE}/(?P<how>rewriteTo|copyTo)/b/(?P<bucket2>[^/]+)/o/(?P<name2>[^/]+)",
                self.copy,
            ),
            ("POST", f"{_PREFIX}{_ONE}/moveTo/o/(?P<name2>[^/]+)", self.move),
            ("POST", f"{_PREFIX}{_ONE}/compose", self.compose),
            ("POST", r"/batch(?:/storage/v1)?", self.batch),
        ]

    def answer(self, request: Request) -> Answer:
        """Return the answer. Raises Refused."""
        for methods, path, act in self.routes:
            found = re.fullmatch(path, request.path)
            if found and re.fullmatch(methods, request.method):
                return act(request, **{k: unquote(v) for k, v in found.groupdict().items()})
        raise Refused(501, f"{request.method} {request.path} is not something this server knows.")

    def buckets(self, _: Request) -> Answer:
        items = [self.store.bucket_resource(name) for name in sorted(self.store.buckets)]
        return shown({"kind": "storage#buckets", "items": items})

    def make_bucket(self, request: Request) -> Answer:
        return shown(self.store.make_bucket(request.json()["name"]))

    def bucket(self, request: Request, bucket: str) -> Answer:
        if request.method == "DELETE":
            self.store.drop_bucket(bucket)
            return Answer(204)
        return shown(self.store.bucket_resource(bucket))

    def listing(self, request: Request, bucket: str) -> Answer:
        return shown(self.store.listing(bucket, request.query))

    def one(self, request: Request, bucket: str, name: str) -> Answer:
        """Read, change or delete one object."""
        if request.method == "DELETE":
            self.store.delete(bucket, name, request.query)
            return Answer(204)
        if request.method in ("PATCH", "PUT"):
            return shown(self.store.patch(bucket, name, request.json(), request.query).resource())
        found = self.store.get(bucket, name, request.query)
        if request.query.get("alt") == "media":
            return media(found, request.headers.get("range"))
        return shown(found.resource())

    def copy(
        self, request: Request, bucket: str, name: str, how: str, bucket2: str, name2: str
    ) -> Answer:
        made = self.store.copy((bucket, name), (bucket2, name2), request.query).resource()
        if how == "copyTo":
            return shown(made)
        size = made["size"]
        told = {"kind": "storage#rewriteResponse", "done": True, "resource": made}
        return shown(told | {"totalBytesRewritten": size, "objectSize": size})

    def move(self, request: Request, bucket: str, name: str, name2: str) -> Answer:
        return shown(self.store.move(bucket, name, name2, request.query).resource())

    def compose(self, request: Request, bucket: str, name: str) -> Answer:
        return shown(self.store.compose(bucket, name, request.json(), request.query).resource())

    def batch(self, request: Request) -> Answer:
        """Answer each request of a multipart body."""
        boundary = _boundary(request.headers["content-type"])
        answers = []
        for part in request.body.split(b"--" + boundary)[1:-1]:
            head, _, inner = part.strip().partition(_blank(part))
            told = re.search(rb"(?i)content-id:\s*<?([^>\r\n]*)", head)
            method, target, _ = inner.lstrip().split(b"\n")[0].decode().split(" ", 2)
            parts, body = urlsplit(target), inner.partition(_blank(inner))[2]
            query = dict(parse_qsl(parts.query))
            try:
                answer = self.answer(Request(method, parts.path, query, {}, body.strip()))
            except Refused as err:
                body = json.dumps({"error": {"code": err.status, "message": err.message}}).encode()
                answer = Answer(err.status, body)
            name = told[1].decode() if told else "0"
            answers.append(
                f"Content-Type: application/http\r\nContent-ID: <response-{name}>\r\n\r\n"
                f"HTTP/1.1 {answer.status} X\r\nContent-Type: application/json\r\n"
                f"Content-Length: {len(answer.body)}\r\n\r\n".encode()
                + answer.body
            )
        body = b"".join(b"--batch_x\r\n" + one + b"\r\n" for one in answers) + b"--batch_x--\r\n"
        return Answer(200, body, {"Content-Type": "multipart/mixed; boundary=batch_x"})

    def upload(self, request: Request, bucket: str) -> Answer:
        """Take an upload: in one piece, with its metadata before it, or resumable."""
        query = request.query
        if key := query.get("upload_id"):
            return self._resume(request, key)
        kind = query.get("uploadType")
        if kind == "multipart":
            fields, data = multipart(request)
        elif kind == "media":
            fields, data = {"contentType": request.headers.get("content-type")}, request.body
        else:
            fields, data = request.json(), b""
            fields |= {"contentType": request.headers.get("x-upload-content-type")}
        fields = {"name": query.get("name"), **{k: v for k, v in fields.items() if v is not None}}
        if kind == "resumable":
            key = self.store.begin(bucket, fields, query)
            where = f"{self.endpoint}/upload/storage/v1/b/{bucket}/o?uploadType=resumable"
            return shown({}, Location=f"{where}&upload_id={key}")
        for pair in request.headers.get("x-goog-hash", "").split(","):
            name, _, value = pair.strip().partition("=")
            fields |= {{"crc32c": "crc32c", "md5": "md5Hash"}[name]: value} if value else {}
        return shown(self.store.put(bucket, fields, data, query).resource())

    def _resume(self, request: Request, key: str) -> Answer:
        if request.method == "DELETE":
            self.store.cancel(key)
        told = request.headers.get("content-range")
        found = re.fullmatch(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)", told or "bytes 0-0/*")
        if found is None:
            raise Refused(400, f"Content-Range `{told}` is not understood.")
        start = None if found[1] is None else int(found[1])
        total = None if found[2] == "*" else int(found[2])
        if told is None:  # everything in one request
            total = len(request.body)
        upload = self.store.append(key, start, total, request.body)
        return shown(upload.done.resource()) if upload.done else _on_its_way(upload)


def _on_its_way(upload: Upload) -> Answer:
    there = {"Range": f"bytes=0-{len(upload.data) - 1}"} if upload.data else {}
    return Answer(308, b"", there)


def media(found: Object, wanted: str | None) -> Answer:
    """Return the bytes of an object, or a range of them."""
    headers = {
        "Content-Type": found.fields.get("contentType") or "application/octet-stream",
        "X-Goog-Hash": f"crc32c={found.crc32c},md5={found.md5}",
        "X-Goog-Generation": str(found.generation),
        "X-Goog-Stored-Content-Length": str(len(found.data)),
        "ETag": found.etag,
        "Accept-Ranges": "bytes",
    }
    size = len(found.data)
    asked = re.fullmatch(r"bytes=(\d*)-(\d*)", wanted or "")
    if asked is None or asked[0] == "bytes=-":
        return Answer(200, found.data, headers)
    if asked[1]:
        start, end = int(asked[1]), min(int(asked[2] or size), size - 1)
    else:
        start, end = max(0, size - int(asked[2])), size - 1
    if start >= size or end < start:
        raise Refused(416, f"The requested range cannot be satisfied: {wanted} of {size} bytes.")
    headers["Content-Range"] = f"bytes {start}-{end}/{size}"
    return Answer(206, found.data[start : end + 1], headers)


def _boundary(content_type: str) -> bytes:
    found = re.search(r"boundary=(\"?)(.+?)\1(?:;|$)", content_type)
    if found is None:
        raise Refused(400, "There is no boundary in the Content-Type.")
    return found[2].encode()


def _blank(part: bytes) -> bytes:
    """Return the empty line that ends the headers of a part: clients differ in line ends."""
    lf, crlf = part.find(b"\n\n"), part.find(b"\r\n\r\n")
    return b"\r\n\r\n" if crlf >= 0 and (lf < 0 or crlf < lf) else b"\n\n"


def multipart(request: Request) -> tuple[dict[str, Any], bytes]:
    """Return metadata and data of a multipart upload, every byte of the data as it was sent."""
    mark, body = b"--" + _boundary(request.headers["content-type"]), request.body
    end = b"\r\n" if body.startswith(mark + b"\r\n") else b"\n"
    first, rest = body[len(mark + end) :].split(end + mark + end, 1)
    fields = json.loads(first.partition(end + end)[2])
    head, _, data = rest.partition(end + end)
    kind = re.search(rb"(?i)content-type:\s*([^\r\n]*)", head)
    data = data[: data.rfind(end + mark + b"--")]
    return {"contentType": kind[1].decode() if kind else None, **fields}, data
