"""`gs://` buckets: gcsfs, with requests of our own.

gcsfs itself tries each request six times in 35 s, whatever it is for, logs a traceback at its end
and forgets what GCS said. Here a request gets a few quick tries, so that one lost answer does not
begin a file of many pieces again; how long to insist on a file is known to imagen/retrying.py.
"""

import asyncio
import base64
import functools
import io
import json
import logging
import os
import random
from typing import Any

import aiohttp
import google.auth.exceptions
from gcsfs.core import GCSFileSystem
from gcsfs.retry import ChecksumError, HttpError

from imagen import credentials
from imagen.checksum import crc32c
from imagen.errors import StorageError
from imagen.redaction import redacted
from imagen.retrying import GivenUpError, Patience, is_final, patiently

QUICK_S = (0.2, 0.8)
"""Pauses before the second and the third try of one request."""
TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=5.0, sock_read=60.0)
MEETING_S = 6.0
"""How long an endpoint that has never answered may be out of reach."""
PROBE = ".imagen-probe"
"""Name of an object that nobody makes: asking for it tells whether there is a bucket."""
_LARGE = 2**20


class NoBucketError(FileNotFoundError):
    """There is no such bucket."""


class Gcs(GCSFileSystem):
    """GCS with quick tries, time limits and errors that say what GCS said."""

    async def _request(
        self,
        method: str,
        path: str,
        *args: Any,
        headers: Any = None,
        json: Any = None,
        data: Any = None,
        **kwargs: Any,
    ) -> tuple[int, Any, Any, bytes]:
        query = {k: v for k, v in kwargs.items() if k not in ("cache_type", "cache_source")}
        for pause in (*QUICK_S, None):
            try:
                return await self._once(method, path, args, headers, query, (json, data))
            except Exception as err:
                if pause is None or is_final(err):
                    raise
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))
        raise AssertionError("the last try returns or raises")

    async def _once(
        self, method: str, path: str, args: Any, headers: Any, query: Any, body: Any
    ) -> tuple[int, Any, Any, bytes]:
        await self._set_session()
        structured, data = body
        if isinstance(data, bytes | bytearray | memoryview):
            data = io.BytesIO(data) if len(data) > _LARGE else data  # sent piece by piece
        elif data is not None and hasattr(data, "seek"):
            data.seek(0)
        session: Any = self.session
        async with session.request(
            method=method,
            url=self._format_path(path, args),
            params=self._get_params(query),
            json=structured,
            headers=self._signed(headers),
            data=data,
            timeout=TIMEOUT,
        ) as answer:
            content = await answer.read()
            _check(answer.status, content, path.format(*args) if args else path)
            if method.upper() == "GET" and answer.status == 200:
                _check_sum(answer.headers.get("X-Goog-Hash", ""), content)
            return answer.status, answer.headers, answer.request_info, content

    def _signed(self, headers: Any) -> Any:
        try:
            return self._get_headers(headers)
        except HttpError as err:
            cause = err.__cause__
            if isinstance(cause, google.auth.exceptions.GoogleAuthError) and cause.retryable:
                raise cause from err  # the place where tokens come from is away for a moment
            raise PermissionError(f"no new token: {redacted(str(cause or err))}") from err

    async def _info(self, path: str, generation: str | None = None, **kwargs: Any) -> Any:
        """Return what is known of an object, by one request: we ask for no folders."""
        path = str(self._strip_protocol(path)).rstrip("/")
        if "/" not in path:
            return await super()._info(path, generation, **kwargs)
        return await self._get_object(path)

    async def _cat_file(
        self, path: str, start: int | None = None, end: int | None = None, **kwargs: Any
    ) -> Any:
        try:
            return await self._cat_file_sequential(path, start=start, end=end, **kwargs)
        except HttpError as err:
            if err.code == 416:  # it ends before
                return b""
            raise

    def replace(self, path: str, data: bytes, generation: int) -> None:
        """Write an object in place of one generation of it. Raises FileExistsError: it is another.

        0: there is none.
        """
        bucket, key, _ = self.split_path(path)
        self.call(
            "POST",
            f"{self._location}/upload/storage/v1/b/{bucket}/o",
            data=data,
            headers={"Content-Type": "application/octet-stream"},
            uploadType="media",
            name=key,
            ifGenerationMatch=str(generation),
        )


def _check(status: int, content: bytes, path: str) -> None:
    """Raise what an answer means; gcsfs knows missing and existing files by OSErrors."""
    if status < 400 or status == 499:  # the upload was cancelled, as we wished
        return
    told = redacted(_told(content))
    if status == 404:
        raise (NoBucketError if "bucket does not exist" in told else FileNotFoundError)(path)
    if status == 412:
        raise FileExistsError(path)
    if status == 401:
        raise PermissionError(f"the credentials were refused (401): {told}")
    if status == 403:
        raise PermissionError(f"Forbidden: {told}")
    raise HttpError({"code": status, "message": told})


def _told(content: bytes) -> str:
    try:
        error = json.loads(content)["error"]
        return error if isinstance(error, str) else str(error.get("message", ""))
    except (ValueError, KeyError, TypeError, AttributeError):
        return content[:200].decode(errors="replace")


def _check_sum(told: str, content: bytes) -> None:
    """Raise ChecksumError unless a whole body is what the store keeps."""
    for part in told.split(","):
        kind, _, value = part.strip().partition("=")
        if kind == "crc32c" and base64.b64decode(value).hex() != crc32c(content):
            raise ChecksumError("the body arrived damaged: its CRC-32C is another")


def filesystem(path: str) -> tuple[Any, str]:
    """Return the file system of a `gs://` URL whose bucket has answered, and the path in it.

    Raises StorageError within 15 s: no credentials, wrong ones, no bucket, nothing that answers.
    """
    inner = str(Gcs._strip_protocol(path))
    bucket = f"gs://{inner.split('/', 1)[0]}"
    settings = tuple(os.environ.get(name, "") for name in credentials.SETTINGS)
    fs = _opened(os.getpid(), settings, bucket)
    return fs, inner


@functools.lru_cache(maxsize=64)
def _opened(pid: int, settings: tuple[str, ...], bucket: str) -> Gcs:
    """Return a file system for a process, for some settings and a bucket; errors are not kept."""
    del pid, settings
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # its tracebacks: we tell it ourselves
    token = credentials.find(bucket)
    fs = Gcs(token=token, use_listings_cache=False, skip_instance_cache=True)
    _meet(fs, bucket)
    return fs


def _meet(fs: Gcs, bucket: str) -> None:
    """Return when a bucket has answered; any answer does but those that no request will better."""

    def knock() -> None:
        try:
            fs.call("GET", "b/{}/o/{}", bucket.removeprefix("gs://"), PROBE)
        except NoBucketError:
            raise StorageError(
                f"bucket `{bucket}` does not exist", "create it, or correct the address"
            ) from None
        except PermissionError as err:
            if str(err).startswith("Forbidden"):
                return  # what is allowed is known to the request that needs it
            raise StorageError(f"bucket `{bucket}`: {err}", credentials.HINT) from err
        except (FileNotFoundError, HttpError):
            return

    deadline = Patience(deadline_s=MEETING_S, first_pause_s=0.3, longest_pause_s=1.0)
    try:
        patiently(knock, bucket, deadline, alone=True)
    except StorageError as err:
        if not isinstance(err, GivenUpError):
            raise
        raise StorageError(
            f"bucket `{bucket}` cannot be reached at {fs._location}: {err.message}",
            "check the network, and STORAGE_EMULATOR_HOST if it is set",
        ) from None
