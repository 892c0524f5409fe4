"""What a GCS bucket keeps, in memory: objects, generations, preconditions, listings, uploads."""

import base64
import functools
import hashlib
import itertools
import threading
import time
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import google_crc32c

CHUNK = 256 * 1024
"""A chunk of a resumable upload is a multiple of this, unless it is the last one."""


class Refused(Exception):
    """An answer that is an error, as GCS words it."""

    def __init__(self, status: int, message: str, reason: str = "") -> None:
        super().__init__(message)
        self.status, self.message, self.reason = status, message, reason


@dataclass
class Object:
    """One generation of an object."""

    bucket: str
    name: str
    data: bytes
    generation: int
    fields: dict[str, Any]
    metageneration: int = 1
    composite: int = 0
    time: float = field(default_factory=time.time)

    @functools.cached_property
    def crc32c(self) -> str:
        return base64.b64encode(google_crc32c.value(self.data).to_bytes(4, "big")).decode()

    @functools.cached_property
    def md5(self) -> str:
        return base64.b64encode(hashlib.md5(self.data).digest()).decode()

    @property
    def etag(self) -> str:
        text = f"{self.generation}/{self.metageneration}"
        return base64.b64encode(text.encode()).decode()

    def resource(self) -> dict[str, Any]:
        """Return it as the JSON API shows it."""
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(self.time))
        stamp += f".{int(self.time % 1 * 1000):03d}Z"
        shown = {
            "kind": "storage#object",
            "id": f"{self.bucket}/{self.name}/{self.generation}",
            "name": self.name,
            "bucket": self.bucket,
            "generation": str(self.generation),
            "metageneration": str(self.metageneration),
            "contentType": "application/octet-stream",
            "storageClass": "STANDARD",
            "size": str(len(self.data)),
            "crc32c": self.crc32c,
            "etag": self.etag,
            "timeCreated": stamp,
            "updated": stamp,
            **self.fields,
        }
        if self.composite:
            return shown | {"componentCount": self.composite}
        return shown | {"md5Hash": self.md5}


@dataclass
class Upload:
    """A resumable upload on its way."""

    bucket: str
    fields: dict[str, Any]
    conditions: dict[str, str]
    data: bytearray = field(default_factory=bytearray)
    done: Object | None = None
    cancelled: bool = False


class BucketStore:
    """All buckets. Every change happens under one lock, preconditions included."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.buckets: dict[str, dict[str, Object]] = {}
        self.uploads: dict[str, Upload] = {}
        self._generations = itertools.count(1_700_000_000_000_000)

    def make_bucket(self, name: str) -> dict[str, Any]:
        with self.lock:
            if name in self.buckets:
                raise Refused(409, "Your previous request to create the named bucket succeeded.")
            self.buckets[name] = {}
        return self.bucket_resource(name)

    def drop_bucket(self, name: str) -> None:
        with self.lock:
            if self.objects(name):
                raise Refused(409, "The bucket you tried to delete is not empty.")
            del self.buckets[name]

    def bucket_resource(self, name: str) -> dict[str, Any]:
        self.objects(name)
        known = {"kind": "storage#bucket", "id": name, "name": name, "metageneration": "1"}
        return known | {"location": "US", "storageClass": "STANDARD", "etag": "CAE="}

    def objects(self, bucket: str) -> dict[str, Object]:
        if bucket not in self.buckets:
            raise Refused(404, "The specified bucket does not exist.", "notFound")
        return self.buckets[bucket]

    def get(self, bucket: str, name: str, query: Mapping[str, str]) -> Object:
        """Return an object. Raises Refused: 404, 412, 304."""
        with self.lock:
            found = self.objects(bucket).get(name)
            if found is None or query.get("generation", str(found.generation)) != str(
                found.generation
            ):
                raise Refused(404, f"No such object: {bucket}/{name}", "notFound")
            check(found, query, missed=304)
            return found

    def put(
        self,
        bucket: str,
        fields: Mapping[str, Any],
        data: bytes,
        query: Mapping[str, str],
        composite: int = 0,
    ) -> Object:
        """Create or replace an object. Raises Refused: 400 for another checksum, 404, 412."""
        given = dict(fields)
        name, crc, md5 = given.pop("name"), given.pop("crc32c", None), given.pop("md5Hash", None)
        given = {k: v for k, v in given.items() if k not in ("bucket", "size", "generation")}
        with self.lock:
            objects = self.objects(bucket)
            check(objects.get(name), query)
            made = Object(
                bucket, name, bytes(data), next(self._generations), given, composite=composite
            )
            if crc not in (None, made.crc32c) or md5 not in (None, made.md5):
                raise Refused(400, "Provided checksum doesn't match the object's.", "invalid")
            objects[name] = made
            return made

    def patch(
        self, bucket: str, name: str, fields: Mapping[str, Any], query: Mapping[str, str]
    ) -> Object:
        with self.lock:
            found = self.get(bucket, name, query)
            found.fields |= fields
            found.metageneration += 1
            return found

    def delete(self, bucket: str, name: str, query: Mapping[str, str]) -> None:
        with self.lock:
            self.get(bucket, name, query)
            del self.objects(bucket)[name]

    def copy(
        self, source: tuple[str, str], target: tuple[str, str], query: Mapping[str, str]
    ) -> Object:
        with self.lock:
            found = self.get(*source, _source(query))
            return self.put(target[0], {**found.fields, "name": target[1]}, found.data, query)

    def move(self, bucket: str, name: str, to: str, query: Mapping[str, str]) -> Object:
        with self.lock:
            made = self.copy((bucket, name), (bucket, to), query)
            self.delete(bucket, name, {})
            return made

    def compose(
        self, bucket: str, name: str, body: Mapping[str, Any], query: Mapping[str, str]
    ) -> Object:
        sources = body["sourceObjects"]
        if not 1 <= len(sources) <= 32:
            raise Refused(400, "The number of source components provided is not 1 to 32.")
        with self.lock:
            parts = [self.get(bucket, s["name"], _pinned(s)) for s in sources]
            data = b"".join(part.data for part in parts)
            count = sum(part.composite or 1 for part in parts)
            return self.put(
                bucket, {**body.get("destination", {}), "name": name}, data, query, count
            )

    def listing(self, bucket: str, query: Mapping[str, str]) -> dict[str, Any]:
        """Return one page of a listing: items and prefixes together in the order of names."""
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        after = base64.urlsafe_b64decode(query.get("pageToken", "")).decode()
        limit = min(int(query.get("maxResults") or 1000), 1000)
        with self.lock:
            entries = _entries(self.objects(bucket).values(), prefix, delimiter, query)
        left = [(n, entry) for n, entry in entries if n > after]
        page: dict[str, Any] = {"kind": "storage#objects"}
        items = [entry.resource() for _, entry in left[:limit] if entry is not None]
        prefixes = [name for name, entry in left[:limit] if entry is None]
        page |= {"items": items} if items else {}
        page |= {"prefixes": prefixes} if prefixes else {}
        if len(left) > limit:
            page["nextPageToken"] = base64.urlsafe_b64encode(left[limit - 1][0].encode()).decode()
        return page

    def begin(self, bucket: str, fields: dict[str, Any], query: Mapping[str, str]) -> str:
        """Begin a resumable upload; return its id. Preconditions are checked now and at its end."""
        with self.lock:
            check(self.objects(bucket).get(fields["name"]), query)
            key = uuid.uuid4().hex
            self.uploads[key] = Upload(bucket, fields, dict(query))
        return key

    def append(self, key: str, start: int | None, total: int | None, data: bytes) -> Upload:
        """Add a chunk of a resumable upload; `start` None asks how far it is. The last commits."""
        with self.lock:
            upload = self.uploads.get(key)
            if upload is None:
                raise Refused(404, "No such upload.", "notFound")
            if upload.cancelled:
                raise Refused(499, "Upload was cancelled.")
            if upload.done is not None or (start is not None and start > len(upload.data)):
                return upload  # what was lost is sent again from where the upload is
            if start is not None:
                upload.data += data[len(upload.data) - start :]
            if total is not None and len(upload.data) == total:
                upload.done = self.put(
                    upload.bucket, upload.fields, bytes(upload.data), upload.conditions
                )
            elif start is not None and len(data) % CHUNK:
                raise Refused(400, f"A chunk of {len(data)} bytes is no multiple of 256 KiB.")
            return upload

    def cancel(self, key: str) -> None:
        with self.lock:
            if key in self.uploads:
                self.uploads[key].cancelled = True
        raise Refused(499, "Upload was cancelled.")


def _pinned(source: Mapping[str, Any]) -> dict[str, str]:
    wanted = dict(source.get("objectPreconditions", {}))
    return wanted | ({"generation": str(source["generation"])} if source.get("generation") else {})


def _source(query: Mapping[str, str]) -> dict[str, str]:
    """Return the conditions on the source of a copy as those of a read."""
    wanted = {"sourceGeneration": "generation"}
    names = {k: wanted.get(k, k.replace("ifSource", "if", 1)) for k in query}
    return {names[k]: v for k, v in query.items() if k.startswith(("source", "ifSource"))}


def _entries(
    objects: Iterable[Object], prefix: str, delimiter: str, query: Mapping[str, str]
) -> list[tuple[str, Object | None]]:
    """Return (name, object), and (common prefix, None) where names go on after a delimiter."""
    found: dict[str, Object | None] = {}
    begin, end = query.get("startOffset", ""), query.get("endOffset")
    for one in objects:
        if one.name.startswith(prefix) and one.name >= begin and (not end or one.name < end):
            rest = one.name[len(prefix) :]
            if delimiter and delimiter in rest:
                found[prefix + rest[: rest.index(delimiter) + 1]] = None
            else:
                found[one.name] = one
    return sorted(found.items(), key=lambda entry: entry[0])


def check(found: Object | None, query: Mapping[str, str], missed: int = 412) -> None:
    """Raise Refused unless an object, None: there is none, is as the preconditions want it."""
    generation = found.generation if found else 0
    metageneration = found.metageneration if found else 0
    for name, value in (("Generation", generation), ("Metageneration", metageneration)):
        if int(query.get(f"if{name}Match", value)) != value:
            raise Refused(412, "At least one of the pre-conditions you specified did not hold.")
        if int(query.get(f"if{name}NotMatch", -1)) == value:
            raise Refused(missed, "At least one of the pre-conditions you specified did not hold.")
