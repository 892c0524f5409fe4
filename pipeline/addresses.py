"""Where a cluster takes jobs: the URL of its dashboard, from a command line or the environment."""

import os
import urllib.parse

from imagen.errors import ConfigError

URL = "RAY_API_SERVER_ADDRESS"
"""Environment variable with the URL of a cluster's dashboard, which takes jobs."""


def url_of(given: str | None) -> str | None:
    """Return the URL at which jobs are taken, from --address or the environment, else None.

    Raises ConfigError when the environment's is no URL: to run here instead would be a surprise.
    """
    named = os.environ.get(URL, "")
    if not given and named and not _is_url(named):
        raise ConfigError(f"{URL} is `{named}`, which is no URL", f"{URL}=http://HEAD:8265")
    url = given or named or os.environ.get("RAY_ADDRESS", "")
    return url.rstrip("/") if _is_url(url) else None


def _is_url(text: str) -> bool:
    return text.startswith(("http://", "https://"))


def host_and_port(url: str) -> tuple[str, int]:
    """Return where a URL leads. Raises ConfigError when it is none."""
    try:
        parts = urllib.parse.urlsplit(url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError as err:  # a port out of range, half a bracket
        raise ConfigError(f"`{url}` is no URL: {err}", "for example http://HEAD:8265") from err
    if not parts.hostname:
        raise ConfigError(f"`{url}` is no URL of a cluster", "for example http://HEAD:8265")
    return parts.hostname, port


def url_inside() -> str:
    """Return the URL at which the cluster takes jobs that this process runs on."""
    from ray.dashboard.utils import ray_address_to_api_server_url

    try:
        return ray_address_to_api_server_url(os.environ.get("RAY_ADDRESS") or "auto")
    except (ConnectionError, ValueError) as err:
        raise ConfigError(
            f"this process does not run on a Ray cluster with a dashboard: {err}",
            f"name the cluster by --address http://HEAD:8265 or {URL}",
        ) from err
