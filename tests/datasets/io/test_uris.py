"""Roots that are URIs: what is shown of them, and what is refused before anything is fetched."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

import pytest
from PIL import Image

from anomtune.datasets.io import remote
from anomtune.datasets.io.remote import local_root
from anomtune.datasets.io.uri import has_secrets, is_uri, mask_uri
from anomtune.datasets.opening import open_dataset
from tests.datasets.conftest import save
from tests.datasets.io.uri_messages import KEY, SECRET, message


@pytest.mark.slow
def test_no_network() -> None:
    told = message(f"s3://{KEY}:{quote(SECRET, safe='')}@b/x?endpoint_override=127.0.0.1:1")
    assert "cannot be reached; check the network" in told


def test_what_pyarrow_says_is_masked(monkeypatch: pytest.MonkeyPatch) -> None:
    class Echo:
        @staticmethod
        def from_uri(uri: str) -> None:
            raise OSError(f"cannot use {uri} with {SECRET} of {KEY}\nand token hush-hush")

    monkeypatch.setattr(remote.fs, "FileSystem", Echo)
    told = message(f"s3://{KEY}:{quote(SECRET, safe='')}@b/a?token=hush-hush&region=here")
    assert "cannot use *** with *** of *** and token ***" in told
    assert "hush" not in told


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("s3://bucket/a", "s3://bucket/a"),
        ("s3://K:se%2Fcret@bucket/a?region=x", "s3://***@bucket/a?region=x"),
        ("s3://K:se/cret@bucket/a", "s3://***@bucket/a"),
        ("s3://K:se?cr@et@bucket/a", "s3://***@bucket/a"),
        ("s3://K@bucket/a", "s3://***@bucket/a"),
        ("s3://K:secretbucket/a", "s3://***/a"),
        ("hdfs://h:90/a", "hdfs://h:90/a"),
        ("hdfs://u:p@h:90/a", "hdfs://***@h:90/a"),
        ("s3://bucket/a@b/c", "s3://bucket/a@b/c"),
        ("abfs://c@h/a?client_secret=se&tenant_id=t", "abfs://***@h/a?client_secret=***&tenant_id=***"),
        ("gs://b/a?endpoint_override=h:1&scheme=http", "gs://b/a?endpoint_override=h:1&scheme=http"),
    ],
)  # fmt: skip
def test_masks_secrets(uri: str, shown: str) -> None:
    assert mask_uri(uri) == shown
    assert is_uri(uri)


@pytest.mark.parametrize(
    ("uri", "told"),
    [
        ("xx://b/a", "xx://b/a: no such kind of storage; use s3://, gs://"),
        (f"s3://{KEY}:{SECRET}@b/a", "s3://***@b/a: not a URI; write special characters as %XX"),
        (f"s3://{KEY}:{quote(SECRET, safe='')}@[b/a", "s3://***@[b/a: "),
        ("s3://b/a?colour=very", "s3://b/a?colour=***: cannot be read (Unexpected query parameter"),
        ("s3:///a", "s3:///a: cannot be read (Missing bucket name"),
        ("file://host/a", "file://host/a: cannot be read (Unsupported hostname"),
        (f"s3://{KEY}:x@b/..?region=r", "s3://***@b/..?region=r: names no folder"),
    ],
)
def test_a_uri_that_cannot_be_used(uri: str, told: str) -> None:
    assert told in message(uri)


def test_local_roots_are_used_in_place(tree: Path, tmp_path: Path, cache: Path) -> None:
    spaced = save(Image.new("RGB", (2, 2)), tmp_path / "a b/x.png").parent
    assert local_root(tree) == tree
    assert local_root(str(tree)) == tree
    assert local_root(f"file://{quote(str(spaced))}") == spaced
    assert local_root("~/x") == Path.home() / "x"
    assert not (cache / "remote").exists()
    assert open_dataset("folder", f"file://{tree}").categories() == ("part",)
    assert not is_uri(tree)
    assert not is_uri("C:/x")


@pytest.mark.parametrize(
    ("uri", "secret"),
    [
        ("s3://bucket/folder", False),
        ("s3://bucket/folder?endpoint_override=localhost%3A9000&scheme=http", False),
        ("abfs://container@account.dfs.core.windows.net/data", False),
        ("gs://anonymous@bucket/folder", False),
        ("hdfs://me@host:8020/data", False),
        ("s3://key:word@bucket/folder", True),
        ("s3://KEY:wo/rd@bucket/folder", True),
        ("s3://key@bucket/folder", True),
        ("s3://bucket/folder?secret_key=word", True),
        ("abfs://c@a.dfs.core.windows.net/x?account_key=word", True),
    ],
)
def test_credentials_in_a_uri_are_known(uri: str, secret: bool) -> None:
    assert has_secrets(uri) == secret
