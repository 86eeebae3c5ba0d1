"""URIs in the place of local paths: what is one, and what of it must not be shown."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from urllib.parse import parse_qsl, unquote, urlsplit, urlunsplit

#: How a root ends that is a table and no folder.
SUFFIXES = frozenset({".csv", ".tsv", ".parquet", ".json"})

_SECRET = re.compile(r"key|secret|token|password|credential|signature|^sig$", re.IGNORECASE)
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
#: Parameters of a URI that say where, not who.
PLAIN = {"endpoint_override", "region", "scheme", "retry_limit_seconds", "project_id"}


def is_uri(root: Path | str) -> bool:
    """Whether a root is a URI and not a local path."""
    return isinstance(root, str) and _SCHEME.match(root) is not None


def has_secrets(uri: str) -> bool:
    """Whether a URI carries credentials that do not belong in a file that others read."""
    scheme, _, rest = uri.partition("://")
    user = rest.rpartition("@")[0]
    shown = mask_uri(uri).partition("?")[0]
    # A user alone is no secret (Azure's containers are named so), but for S3, where it is a key.
    named = "***" in shown and (scheme == "s3" or ":" in (user or rest))
    names = (name for name, _ in parse_qsl(rest.partition("?")[2], keep_blank_values=True))
    return named or any(_SECRET.search(name) for name in names)


def mask_uri(uri: str) -> str:
    """Returns a URI without what may be secret, to show it or to write it down."""
    scheme, _, rest = uri.partition("://")
    before, at, after = rest.rpartition("@")
    # A key that was not escaped may hold a slash, a question mark or an @ of its own.
    if at and (":" in before or not {"/", "?"} & set(before)):
        rest = f"***@{after}"
    place, _, query = rest.partition("?")
    host, slash, path = place.partition("/")
    if ":" in host and not re.fullmatch(r".*:[0-9]+|\[.*\]|\*\*\*@.*", host):
        place = f"***{slash}{path}"  # no port: a key whose @ was forgotten
    shown = "&".join(
        f"{name}={value if name in PLAIN else '***'}"
        for name, value in parse_qsl(query, keep_blank_values=True)
    )
    return f"{scheme}://{place}{'?' if shown else ''}{shown}"


def folder_of(uri: str) -> tuple[str, str]:
    """Returns the URI of the folder that is fetched for a root; and a table's name there, or ""."""
    try:
        parts = urlsplit(uri)
    except ValueError:
        return uri, ""  # told by who opens it
    above, _, name = parts.path.rpartition("/")
    if PurePosixPath(name).suffix.lower() not in SUFFIXES:
        return uri, ""
    return urlunsplit(parts._replace(path=above)), unquote(name)
