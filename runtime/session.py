"""One way to a Ray cluster: the given address, else $RAY_ADDRESS, else a local Ray of our own."""

import contextlib
import glob
import logging
import os
import re
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

from imagen.errors import ConfigError
from runtime.cli import user_error
from runtime.state import LOCK, is_locked, lock

SETTINGS = {
    # Ray Train: a node that is gone costs seconds, not a minute (shared/knowledge: ray.md)
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "15",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "1",
    "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": "120",  # a worker that hangs; Ray's own: 600
    "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "1",
    "RAY_TRAIN_COLLECTIVE_TIMEOUT_S": "600",
    "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # else the first look at a bucket may take 60 s
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # `uv run` would rebuild the environment in each worker
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # the new behaviour, which Ray else warns about
    "RAY_USAGE_STATS_ENABLED": "0",  # nothing of a run is reported to anyone
}
"""Defaults for the environment; what is set already stays."""

EXPECTS = "IMAGEN_EXPECTS"
"""Environment variable of a cluster's head: what its machines have, also while none is there."""
EXPECTED = re.compile(r"GPU|imagen_(base|sr[1-9][0-9]*|eval|validation)")

LOCAL_PREFIX = "imagen-ray-"
OBJECT_STORE_BYTES = 200 * 2**20
"""Our stages pass file names and small arrays through the object store."""
KNOCK_S = 10.0
ATTEMPTS = 3
REGISTRATION = "timed out during startup"
"""In Ray's error when a node needs more than a hard-coded 30 s to register (a loaded machine)."""


def settings() -> None:
    """Apply `SETTINGS` to the environment, which workers of a local Ray inherit."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)


def expected() -> dict[str, float]:
    """Return one of each resource that $IMAGEN_EXPECTS names: `GPU,imagen_base,imagen_eval`.

    They count as there for who decides what to ask a cluster for: an autoscaler brings a machine
    when something asks for what it has, and not before. Raises ConfigError for other names.
    """
    text = os.environ.get(EXPECTS, "").strip()
    names = [name.strip() for name in text.split(",")] if text else []
    for name in names:
        if not EXPECTED.fullmatch(name):
            raise ConfigError(
                f"{EXPECTS}={text}: `{name}` is no resource that a stage asks for",
                "names of GPU, imagen_eval, imagen_validation, imagen_base, imagen_sr1, …, "
                "with commas between them",
            )
    return dict.fromkeys(names, 1.0)


@contextlib.contextmanager
def connect(
    address: str | None = None,
    num_cpus: int | None = None,
    resources: Mapping[str, float] | None = None,
) -> Iterator[str]:
    """Connect this process to Ray and yield the address that other processes can join.

    `num_cpus` and `resources` describe the local Ray, if one is started. Only what was started
    here is shut down. Raises ConfigError when nothing answers at the address.
    """
    settings()
    import ray  # after the settings: Ray reads some of them at import

    target = address or os.environ.get("RAY_ADDRESS") or "local"
    if ray.is_initialized():
        yield ray.get_runtime_context().gcs_address
    elif target == "local":
        with _local(num_cpus, resources) as started:
            yield started
    else:
        try:
            yield _join(target)
        finally:
            ray.shutdown()


def _join(address: str) -> str:
    import ray

    try:
        _knock(address)
        _init(address)
    except OSError as err:  # Ray's ConnectionError is one
        raise ConfigError(
            f"no Ray cluster answers at `{address}`: {err}",
            "check --address and RAY_ADDRESS; without both, a local Ray is started",
        ) from err
    return ray.get_runtime_context().gcs_address


def _knock(address: str) -> None:
    """Raise OSError when nothing listens at `host:port`; Ray itself tries for minutes."""
    host, colon, port = address.rpartition(":")
    if colon and port.isdigit() and "/" not in host:
        socket.create_connection((host.strip("[]"), int(port)), timeout=KNOCK_S).close()


def _init(address: str, **options: Any) -> None:
    import ray

    before = signal.getsignal(signal.SIGTERM)
    ray.init(address, log_to_driver=False, logging_level=logging.WARNING, **options)
    if callable(before) and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, before)  # Ray's own exits with 15 and without a word


@contextlib.contextmanager
def _local(num_cpus: int | None, resources: Mapping[str, float] | None) -> Iterator[str]:
    import ray

    sweep_local()
    # short: Ray puts Unix sockets below it, whose paths end at 107 bytes
    folder = tempfile.mkdtemp(prefix=LOCAL_PREFIX, dir="/tmp")
    keep = False
    try:
        with lock(folder):
            _start(folder, num_cpus=num_cpus, resources=dict(resources or {}))
            yield ray.get_runtime_context().gcs_address
    except Exception as err:
        keep = user_error(err) is None
        if keep:
            print(f"Ray's logs are kept in {folder} until a later run", file=sys.stderr)
        raise
    finally:
        ray.shutdown()
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)  # a dying worker may still write


def _start(folder: str, **size: Any) -> None:
    import ray

    # Ray says at each start that it protects the cluster by a token, which is what we want
    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)
    for attempt in range(1, ATTEMPTS + 1):
        try:
            _init(
                "local",
                _temp_dir=folder,
                include_dashboard=False,
                object_store_memory=OBJECT_STORE_BYTES,
                **size,
            )
            return
        except Exception as err:
            ray.shutdown()
            if REGISTRATION not in str(err) or attempt == ATTEMPTS:
                raise


def sweep_local(older_than_s: float = 60.0) -> int:
    """Delete the folders of local Rays that nobody holds any more; return how many.

    Only folders that were locked once, by `_local`: of other Rays nobody knows here who holds them.
    """
    swept = 0
    for path in glob.glob(f"/tmp/{LOCAL_PREFIX}*/{LOCK}"):
        path = os.path.dirname(path)
        with contextlib.suppress(OSError):  # somebody else's, or swept by somebody else
            if time.time() - os.stat(path).st_mtime > older_than_s and is_locked(path) is None:
                shutil.rmtree(path)
                swept += 1
    return swept
