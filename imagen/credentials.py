"""Who we are to Google Cloud Storage: found once in a process, in seconds, or an error that helps.

In this order:

- `FSSPEC_GS_TOKEN`, fsspec's own setting: `anon` for public buckets, or the path of a key file
- `STORAGE_EMULATOR_HOST` without any of the next: nobody, for a test server asks nobody
- `GOOGLE_APPLICATION_CREDENTIALS`: path of a service account's key, or of a workload identity
  federation's config
- `gcloud auth application-default login`: the file that it leaves
- the metadata server of a machine of Google's: a VM's service account, GKE's workload identity

There is no silent way on as nobody: it would end in an error about something else.
"""

import logging
import os
from typing import Any

from imagen.errors import StorageError
from imagen.redaction import redacted

LIMIT_S = 8.0
"""How long it may take to find credentials, and to get the first token for them."""
SCOPE = "https://www.googleapis.com/auth/devstorage.read_write"
HINT = (
    "log in with `gcloud auth application-default login`, or name a service account's key in "
    "GOOGLE_APPLICATION_CREDENTIALS; on Google's machines, give the node a service account; "
    "for public buckets set FSSPEC_GS_TOKEN=anon"
)
SETTINGS = (
    "FSSPEC_GS_TOKEN",
    "FSSPEC_GCS_TOKEN",
    "STORAGE_EMULATOR_HOST",
    "GOOGLE_APPLICATION_CREDENTIALS",
    "GCE_METADATA_HOST",
    "CLOUDSDK_CONFIG",
    "HOME",
)
"""Settings of the environment that decide which credentials are found."""


def find(bucket: str) -> Any:
    """Return what gcsfs takes for its `token`: "anon" or credentials with a token.

    Raises StorageError, which names the bucket.
    """
    given = os.environ.get("FSSPEC_GS_TOKEN") or os.environ.get("FSSPEC_GCS_TOKEN")
    named = os.environ.get("GOOGLE_APPLICATION_CREDENTIALS") or os.environ.get("GCE_METADATA_HOST")
    if given == "anon" or (os.environ.get("STORAGE_EMULATOR_HOST") and not (given or named)):
        return "anon"
    return _within_limit(given, bucket)


def _within_limit(path: str | None, bucket: str) -> Any:
    from google.auth import exceptions

    from imagen.retrying import OverdueError, within

    for name in ("google.auth", "google.auth._default", "google.auth.compute_engine._metadata"):
        logging.getLogger(name).setLevel(logging.ERROR)  # each look at a metadata server
    try:
        return within(lambda: _load(path), LIMIT_S, f"credentials of {bucket}")
    except exceptions.DefaultCredentialsError as err:
        raise StorageError(
            f"no credentials for bucket `{bucket}`: {_first_line(err)}", HINT
        ) from None
    except (exceptions.GoogleAuthError, OverdueError, ValueError, OSError) as err:
        raise StorageError(
            f"the credentials for bucket `{bucket}` are of no use: {_first_line(err)}", HINT
        ) from None


def _load(path: str | None) -> Any:
    """Return credentials that hold a token."""
    import google.auth
    import google.auth.credentials
    import google.auth.transport.requests

    request = google.auth.transport.requests.Request()
    if path:
        found, _ = google.auth.load_credentials_from_file(path, request=request)
    else:
        found, _ = google.auth.default(request=request)
    # scopes come later: with them, google.auth asks yet another service for the project's name
    found: Any = google.auth.credentials.with_scopes_if_required(found, [SCOPE])
    found.refresh(request)
    return found


def _first_line(err: Exception) -> str:
    text = str(err).strip() or type(err).__name__
    return redacted(text.splitlines()[0][:300])
