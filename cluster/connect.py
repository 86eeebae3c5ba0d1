"""The way to a cluster's dashboard: its address, whether it asks for a token, and the token.

Whoever reaches a Ray dashboard without a token runs code on the cluster. So nothing is sent to one
on another machine that lets everybody in, unless that is asked for. Ray tells the mode at
``/api/authentication_mode``, which needs no token (2.52 and newer; older ones have no tokens).
"""

from __future__ import annotations

import ipaddress
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import requests

from anomtune.errors import SweepError
from anomtune.search.run.process import muted
from anomtune.search.run.ray_internals import CLIENT_ADDRESSES, CLIENT_LOGGERS

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

#: Seconds that a dashboard may take to answer.
_PATIENCE = 10.0


def dashboard_url(address: str) -> str:
    """Returns a dashboard's address as it is used, without a slash at its end.

    Raises:
        SweepError: If it is not ``http(s)://host[:port]``, or carries a password.
    """
    parts = urlsplit(address)
    try:
        usable = parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0
    except ValueError:  # a port that is no number
        usable = False
    if parts.username is not None or parts.password is not None:
        raise SweepError(
            "--address: carries a user or password; take it out, Ray's token goes into "
            "RAY_AUTH_TOKEN_PATH"
        )
    if not usable:
        raise SweepError(
            f"--address {address}: give the URL of the cluster's dashboard, such as "
            "http://head:8265"
        )
    return address.rstrip("/")


def is_loopback(url: str) -> bool:
    """Whether a URL leads to this very machine (or into a tunnel that begins here)."""
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def asks_for_token(url: str) -> bool:
    """Whether a dashboard lets nobody in without a token.

    Raises:
        SweepError: If nothing answers there, or something that is not Ray.
    """
    try:
        answer = requests.get(f"{url}/api/authentication_mode", timeout=_PATIENCE)
        if answer.status_code in {401, 403}:  # a proxy in front asks for one
            return True
        if answer.status_code == 404:  # older than tokens: is it Ray at all?
            older = requests.get(f"{url}/api/version", timeout=_PATIENCE)
            older.raise_for_status()
            return "ray_version" not in older.json()
        answer.raise_for_status()
        return bool(answer.json()["authentication_mode"] != "disabled")
    except requests.exceptions.SSLError as error:
        raise SweepError(
            f"--address {url}: its certificate is not trusted ({_reason(error)}); set "
            "REQUESTS_CA_BUNDLE to the file of the authority that signed it"
        ) from None
    except (requests.RequestException, ValueError, KeyError, TypeError) as error:
        raise SweepError(
            f"--address {url}: no Ray dashboard answers there ({_reason(error)}); check host and "
            "port, or open a tunnel: ssh -L 8265:localhost:8265 HEAD"
        ) from None


def _reason(error: BaseException) -> str:
    """Returns the kind of an error: what requests says of it repeats the URL at length."""
    return type(error).__name__


def read_token() -> str | None:
    """Returns Ray's token from where Ray looks for it, ``None`` if there is none.

    ``RAY_AUTH_TOKEN``, the file that ``RAY_AUTH_TOKEN_PATH`` names, ``~/.ray/auth_token``.

    Raises:
        SweepError: If the named file cannot be read.
    """
    if token := os.environ.get("RAY_AUTH_TOKEN", "").strip():
        return token
    named = os.environ.get("RAY_AUTH_TOKEN_PATH")
    path = Path(named) if named else Path.home() / ".ray" / "auth_token"
    try:
        return path.read_text(encoding="utf-8").strip() or None
    except (OSError, UnicodeDecodeError):
        if named:
            raise SweepError(f"RAY_AUTH_TOKEN_PATH: cannot read {named}") from None
        return None


def connect(address: str, *, allow_unauthenticated: bool = False) -> JobSubmissionClient:
    """Returns a client of a cluster's job API.

    Args:
        address: ``http(s)://host[:port]`` of its dashboard.
        allow_unauthenticated: Whether a dashboard on another machine may let everybody in.

    Raises:
        SweepError: If it does, there is no token for it, the token is refused, or nothing answers.
    """
    url = dashboard_url(address)
    headers = {}
    if asks_for_token(url):
        token = read_token()
        if token is None:
            raise SweepError(
                f"--address {url}: asks for a token; put the cluster's into ~/.ray/auth_token, or "
                "name its file in RAY_AUTH_TOKEN_PATH"
            )
        headers["Authorization"] = f"Bearer {token}"
    elif not is_loopback(url) and not allow_unauthenticated:
        raise SweepError(
            f"--address {url}: lets everybody in who reaches it, to run any code; start the "
            "cluster with RAY_AUTH_MODE=token, or say --allow-unauthenticated if its network is "
            "closed"
        )
    from ray.exceptions import AuthenticationError  # noqa: PLC0415 - slow, and not for refusals
    from ray.job_submission import JobSubmissionClient  # noqa: PLC0415

    try:
        with _without(CLIENT_ADDRESSES), muted(logging.WARNING, *CLIENT_LOGGERS):
            return JobSubmissionClient(url, headers=headers)
    except AuthenticationError:
        raise SweepError(
            f"--address {url}: refuses the token; it is not that of this cluster "
            "(RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH, ~/.ray/auth_token)"
        ) from None
    except (ConnectionError, RuntimeError, requests.RequestException) as error:
        raise SweepError(f"--address {url}: {str(error).splitlines()[0]}") from None


@contextmanager
def _without(names: tuple[str, ...]) -> Iterator[None]:
    """Takes variables out of the environment for a while."""
    kept = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(kept)
