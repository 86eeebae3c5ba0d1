r"""How the name of a file is written down. This is the one place that says so.

A name is bytes. Python gives it as a string in which a byte that the locale's encoding cannot
read stands as a lone surrogate (PEP 383), and such a string no file, table or page takes. So:

- Everywhere in anomtune, but for paths that are about to be opened, a name is **text**: its bytes
  read as UTF-8, with ``\xfc`` for a byte that is none and ``\x0a`` for a control character. That
  text stands in records, tables, sweep files and pages, people read it and type it, and it is the
  same in every locale. `to_text` makes it and `to_name` gives back the very name: a backslash that
  would read as such an escape is itself written ``\x5c``.
- A CSV file that lists image files (``scores.csv``, a manifest) holds their **bytes**, so that
  each is found by what stands there: it is opened with `BYTES`.
"""

from __future__ import annotations

import hashlib
import os
import re
from functools import lru_cache
from pathlib import PurePath
from typing import Any

#: For `open`: a file whose text is names as Python gives them, written as the bytes that they are.
BYTES: dict[str, Any] = {"encoding": "utf-8", "errors": "surrogateescape"}

#: Longest name, in bytes, that the file systems of Linux, macOS and Windows all take.
LONGEST = 255

_ESCAPE = re.compile(r"\\x(0[1-9a-f]|1[0-9a-f]|5c|7f|[89a-f][0-9a-f])")
_UNDECODED = re.compile("[\ud800-\udfff]")
_CONTROL = re.compile("[\x01-\x1f\x7f]")


def to_text(name: str | os.PathLike[str]) -> str:
    r"""Returns the text of a name or path that the operating system gave.

    >>> import os
    >>> to_text(os.fsdecode(b"M\xfcller.png"))
    'M\\xfcller.png'
    """
    found = utf8(os.fspath(name))
    return _in_a_line(_ESCAPE.sub(lambda match: rf"\x5c{match[0][1:]}", found))


def to_name(text: str) -> str:
    """Returns the name or path whose text this is, as functions of the operating system take it.

    The inverse of `to_text`. A name that never was text is returned as it is.
    """
    escaped = _ESCAPE.sub(_unescape, text)
    return os.fsdecode(escaped.encode("utf-8", "surrogateescape"))


def typed(argument: str) -> str:
    r"""Returns what somebody typed on a command line as text; ``\xfc`` in it stands as it is."""
    return _in_a_line(utf8(argument))


def plain_name(path: str) -> str:
    r"""Returns a path as the operating system takes it, ``\x`` meaning no more than it says.

    For what anomtune names itself: the locale's encoding may be unable to write it.
    """
    return os.fsdecode(path.encode("utf-8", "surrogateescape"))


def readable(text: str) -> str:
    r"""Returns a message in which bytes that are no UTF-8 stand as ``\xfc``."""
    return _UNDECODED.sub(_escaped, text)


def with_suffix(name: str, suffix: str) -> str:
    """Returns a name of a file with a suffix after it, shortened if the two are too long for one.

    A digest of the whole name takes the place of what is left out, so that two names stay two.
    """
    content = os.fsencode(name)
    room = LONGEST - len(os.fsencode(suffix))
    if len(content) <= room:
        return name + suffix
    digest = f"~{hashlib.sha256(content).hexdigest()[:32]}"
    kept = content[: room - len(digest)]
    if _is_utf8(content):  # some file systems take nothing else: cut between characters
        kept = kept.decode("utf-8", "ignore").encode()
    return os.fsdecode(kept) + digest + suffix


@lru_cache(4096)
def leaves(path: str, kind: type[PurePath] = PurePath) -> bool:
    """Whether a path does not stay below the folder that it is appended to.

    Args:
        path: With slashes, as text.
        kind: As which system reads paths; on Windows backslashes and drives count as well.
    """
    read = kind(path)
    return ".." in path.split("/") or ".." in read.parts or bool(read.drive or read.root)


def _is_utf8(content: bytes) -> bool:
    try:
        content.decode()
    except UnicodeDecodeError:
        return False
    return True


def utf8(name: str) -> str:
    """Returns a string of the operating system as UTF-8 reads its bytes, in every locale."""
    return os.fsencode(name).decode("utf-8", "surrogateescape")


def _in_a_line(text: str) -> str:
    return _CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", readable(text))


def _escaped(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else f"\\u{code:04x}"


def _unescape(match: re.Match[str]) -> str:
    code = int(match[1], 16)
    return chr(0xDC00 + code) if code >= 0x80 else chr(code)
