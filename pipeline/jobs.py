"""Ray jobs of stages over HTTP: what a cluster runs, and asking it to run and to stop.

The id of a job is `imagen-<stage>-<digest of out>-<attempt>`: Ray refuses an id that it has seen,
so of two who submit the same attempt one is told that it is there already. Nothing about jobs is
kept anywhere else; how far stages are is in their files.
"""

import contextlib
import hashlib
import logging
import os
import posixpath
import re
import socket
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from imagen import storage
from imagen.errors import ConfigError, ImagenError
from pipeline.addresses import URL, host_and_port

LINE = "line"
"""Stage name of the job that runs all stages."""
KNOCK_S = 10.0
ANSWER_S = 60.0
"""How long one request may take, the upload of the code aside."""
UPLOAD_S = 600.0
AGENT_S = 120.0
"""How long a head that has just started may have nobody yet who takes jobs."""
PAUSE_S = 1.0

LOST = ("JOB_SUPERVISOR_ACTOR_DIED", "JOB_SUPERVISOR_ACTOR_UNKNOWN_FAILURE")
"""Ray's words for jobs that ended without a fault of theirs."""

TALKATIVE = (
    *("ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk"),
    *("ray._private.runtime_env.packaging", "ray._private.runtime_env.working_dir"),
)
"""Loggers that tell of each upload, each file that is left out and each end of a log."""

State = Literal["PENDING", "RUNNING", "STOPPED", "SUCCEEDED", "FAILED"]


class Unreachable(ImagenError):
    """A cluster does not answer, or not as it should."""


class TakenError(ImagenError):
    """A job with this id is there already."""


@dataclass(frozen=True, kw_only=True, slots=True)
class JobInfo:
    """One job of a stage."""

    id: str
    status: State
    started_s: float
    """Seconds since 1970."""
    ended_s: float | None
    """None: it has not ended."""
    message: str
    """What Ray says about it; of a failed one with the end of its log."""
    config: str
    """Digest of the config that it was given."""
    command: str = ""
    """Command line of its program."""
    exit_status: int | None
    """Of the program; None: it did not end by itself."""
    lost: bool = False
    """Whether it went with the machine or the process that watched over it."""

    @property
    def active(self) -> bool:
        """Tell whether it runs, or will."""
        return self.status in ("PENDING", "RUNNING")

    @property
    def attempt(self) -> int:
        """The number at the end of the id, from 1."""
        return int(self.id.rpartition("-")[2])


def job_id(stage: str, out: str, attempt: int) -> str:
    """Return the id of an attempt at a stage of the run below `out`."""
    return f"imagen-{stage.replace(' ', '-')}-{digest_of(out)}-{attempt}"


def digest_of(out: str) -> str:
    """Return 8 hex digits that stand for a folder or URL, however it is written."""
    return hashlib.sha256(place(out).encode()).hexdigest()[:8]


def place(out: str) -> str:
    """Return the one way to write a folder or URL: `/a//b/`, `file:///a/b` are `/a/b`.

    Slashes inside of a URL are part of an object's name, those at its end are not.
    """
    if storage.is_local(out):
        path = storage.local(out)
        return posixpath.join("/", os.path.normpath(path).lstrip("/")) if path[:1] == "/" else out
    scheme, _, rest = out.rstrip("/").partition("://")
    return f"{'gs' if scheme == 'gcs' else scheme}://{rest}"


class Cluster:
    """A Ray cluster that takes jobs.

    Raises Unreachable when nothing answers, ConfigError when it does not let us in.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        try:
            _knock(address)
            with self._asked():
                self._client: Any = _client(address)
        except (OSError, Unreachable) as err:
            reason = err.message if isinstance(err, ImagenError) else err
            raise Unreachable(
                f"no Ray cluster takes jobs at `{address}`: {reason}",
                "give the URL of its dashboard, for example http://HEAD:8265; of a cluster on "
                "Kubernetes: `kubectl port-forward service/NAME-head-svc 8265`",
            ) from err

    def of(self, out: str) -> dict[str, list[JobInfo]]:
        """Return the jobs of the run below `out` by stage name, each from oldest to newest."""
        with self._asked():
            listed = self._client.list_jobs()
        found: dict[str, list[JobInfo]] = {}
        pattern = re.compile(rf"imagen-[a-z0-9-]+-{digest_of(out)}-\d+")
        for job in listed:
            told = job.metadata or {}
            if pattern.fullmatch(job.submission_id or "") and told.get("out") == place(out):
                found.setdefault(told["stage"], []).append(_info(job))
        return {stage: sorted(jobs, key=lambda job: job.attempt) for stage, jobs in found.items()}

    def info(self, key: str) -> JobInfo | None:
        """Return what is known of a job, None when the cluster has never heard of it."""
        try:
            with self._asked():
                return _info(self._client.get_job_info(key))
        except _MissingError:
            return None

    def submit(
        self, key: str, command: str, runtime_env: Mapping[str, Any], metadata: Mapping[str, str]
    ) -> None:
        """Start a job. Raises TakenError when there is one with this id."""
        asked = {"entrypoint": command, "runtime_env": dict(runtime_env)}
        deadline = time.monotonic() + AGENT_S
        while True:
            try:
                with self._asked():
                    self._client.submit_job(**asked, metadata=dict(metadata), submission_id=key)
                return
            except _NoAgentError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(PAUSE_S)

    def stop(self, key: str) -> bool:
        """Ask a job to end, by the signal that it was submitted with; False: it had ended."""
        with self._asked():
            return self._client.stop_job(key)

    def log(self, key: str) -> str:
        """Return all that a job has written so far."""
        with self._asked():
            return self._client.get_job_logs(key)

    async def tail(self, key: str) -> AsyncIterator[str]:
        """Yield what a job has written, from its start, and what it writes, until it ends."""
        with self._asked():
            async for text in self._client.tail_job_logs(key):
                yield text

    @contextlib.contextmanager
    def _asked(self) -> Iterator[None]:
        """Tell what went wrong with a request in words of ours."""
        import aiohttp
        import requests
        from ray.exceptions import AuthenticationError

        try:
            yield
        except AuthenticationError as err:
            raise _not_let_in(self.address) from err
        except (requests.RequestException, aiohttp.ClientError, OSError) as err:
            raise Unreachable(f"`{self.address}` does not answer: {_shortest(err)}") from err
        except RuntimeError as err:
            raise self._refused(str(err)) from err

    def _refused(self, text: str) -> ImagenError:
        if "already exists" in text:
            return TakenError("a job with this id is there already")
        if "No available agent" in text:
            return _NoAgentError(f"nobody takes jobs at `{self.address}`: {text}")
        status = re.search(r"status code (\d+)", text)
        if status and status[1] == "404":
            return _MissingError(text)
        if status and status[1] == "401":
            return _not_let_in(self.address)
        return Unreachable(f"`{self.address}` could not do what it was asked for: {text.strip()}")


class _MissingError(Unreachable):
    """There is no such job."""


class _NoAgentError(Unreachable):
    """The head has started, but not yet all of it."""


def _not_let_in(address: str) -> ConfigError:
    return ConfigError(
        f"the cluster at `{address}` lets in only who has its token",
        "set RAY_AUTH_MODE=token and the token in RAY_AUTH_TOKEN, or the path of a file with it "
        "in RAY_AUTH_TOKEN_PATH",
    )


def _knock(address: str) -> None:
    """Raise OSError when nothing listens there; a request of Ray's client would wait minutes."""
    socket.create_connection(host_and_port(address), timeout=KNOCK_S).close()


def _client(address: str) -> Any:
    from ray.job_submission import JobSubmissionClient

    for name in TALKATIVE:
        logging.getLogger(name).setLevel(logging.ERROR)

    class Client(JobSubmissionClient):
        """Ray's client, which by itself waits for ever for a server that hangs."""

        def _do_request(self, method: str, endpoint: str, **options: Any) -> Any:
            answer_s = UPLOAD_S if method == "PUT" else ANSWER_S
            return super()._do_request(method, endpoint, timeout=(KNOCK_S, answer_s), **options)

    before = os.environ.get(URL)
    os.environ[URL] = address  # else Ray takes $RAY_ADDRESS, whatever it is given
    try:
        return Client(address)
    finally:
        os.environ.pop(URL)
        if before is not None:
            os.environ[URL] = before


def _info(job: Any) -> JobInfo:
    return JobInfo(
        id=job.submission_id,
        status=job.status.value,
        started_s=(job.start_time or 0) / 1000,
        ended_s=job.end_time / 1000 if job.end_time else None,
        message=job.message or "",
        config=(job.metadata or {}).get("config", ""),
        command=job.entrypoint or "",
        exit_status=job.driver_exit_code,
        lost=job.error_type in LOST,
    )


def _shortest(err: BaseException) -> str:
    """Return the innermost reason of a failed request; requests wraps it three times."""
    text = str(err).rstrip(")'\"")
    return text.rpartition(": ")[2] or type(err).__name__
