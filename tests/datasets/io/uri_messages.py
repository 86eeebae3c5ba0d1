"""What is said of a URI that cannot be used, and what must not be said."""

from __future__ import annotations

from urllib.parse import quote

import pytest

from anomtune.datasets.io.remote import local_root
from anomtune.errors import DataError

#: Who may read: neither may be shown.
KEY, SECRET = "AKIDEXAMPLE", "very/secret+key"


def message(uri: str) -> str:
    """The complaint about a URI: one line, nothing secret in it or in what lies behind it."""
    with pytest.raises(DataError) as caught:
        local_root(uri)
    told = str(caught.value)
    assert "\n" not in told
    assert caught.value.__cause__ is None
    for secret in (KEY, SECRET, quote(SECRET, safe=""), "very", "secret+"):
        assert secret not in told
    return told
