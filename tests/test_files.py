"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from anomtune import files
from anomtune.files import TEMPORARY, replaced, temporary_name, write_whole


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def test_the_new_content_takes_the_place_of_the_old(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    reader = path.open("rb")
    with replaced(path) as stream:
        stream.write(b"new")
        stream.flush()
        assert path.read_bytes() == b"old"
    with reader:
        assert reader.read() == b"old", "replaced, not overwritten"
    assert path.read_bytes() == b"new"
    write_whole(path, b"newest")
    assert path.read_bytes() == b"newest"
    assert names(tmp_path) == ["a.bin"]


@pytest.mark.parametrize("kind", [RuntimeError, KeyboardInterrupt])
def test_an_error_leaves_the_old_content_and_nothing_else(
    tmp_path: Path, kind: type[BaseException]
) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")

    def write_half(place: Path) -> None:
        with replaced(place) as stream:
            stream.write(b"half")
            raise kind

    for place in (path, tmp_path / "b.bin"):
        with pytest.raises(kind):
            write_half(place)
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["a.bin"]


def test_a_folder_in_its_place_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "taken/inside").mkdir(parents=True)
    with pytest.raises(OSError, match="taken"):
        write_whole(tmp_path / "taken", b"x")
    assert names(tmp_path) == ["taken"]
    write_whole(tmp_path / "file", b"x")
    with pytest.raises(OSError, match="file"):
        write_whole(tmp_path / "file/below", b"x")


def test_folders_above_are_made(tmp_path: Path) -> None:
    write_whole(str(tmp_path / "a/b/c.bin"), b"x")
    assert (tmp_path / "a/b/c.bin").read_bytes() == b"x"


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_everybody_may_read_it(tmp_path: Path, mask: int) -> None:
    path = tmp_path / "a.bin"
    before = os.umask(mask)
    try:
        write_whole(path, b"x")
        assert path.stat().st_mode & 0o777 == 0o644
        path.chmod(0o600)
        write_whole(path, b"x")
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o644


def test_text(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    with replaced(path, text=True) as stream:
        stream.write("ä\n")
    assert path.read_bytes() == b"\xc3\xa4\n"
    with replaced(path, text=True, encoding="latin-1", newline="\r\n") as stream:
        stream.write("ä\n")
    assert path.read_bytes() == b"\xe4\r\n"
    with replaced(path, text=True, errors="surrogateescape") as stream:
        stream.write("\udcff")
    assert path.read_bytes() == b"\xff"


@pytest.mark.parametrize("name", ["n" * 255, "ä" * 127, "." + "n" * 254])
def test_names_as_long_as_a_file_system_allows(tmp_path: Path, name: str) -> None:
    write_whole(tmp_path / name, b"x")
    assert names(tmp_path) == [name]


@pytest.mark.parametrize("durable", [False, True])
def test_durable_flushes_the_file_before_its_name_and_then_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, durable: bool
) -> None:
    path = tmp_path / "a.bin"
    done: list[tuple[str, bool]] = []
    flush = os.fsync

    def spy(handle: int) -> None:
        kind = "folder" if os.path.isdir(f"/dev/fd/{handle}") else "file"
        done.append((kind, path.exists()))
        if kind == "file":
            assert os.fstat(handle).st_size == 3, "all of it is flushed"
        flush(handle)

    monkeypatch.setattr(files.os, "fsync", spy)
    write_whole(path, b"new", durable=durable)
    assert done == ([("file", False), ("folder", True)] if durable else [])


WRITER = """
import sys, time
from anomtune.files import replaced
with replaced(sys.argv[1]) as stream:
    stream.write(b"half")
    stream.flush()
    print("writing", flush=True)
    time.sleep(60)
"""


def test_a_killed_writer_leaves_the_old_file_and_one_that_says_what_it_is(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    command = [sys.executable, "-c", WRITER, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "writing\n"
        writer.send_signal(signal.SIGKILL)
    assert path.read_bytes() == b"old"
    (left,) = set(names(tmp_path)) - {"a.bin"}
    assert left.startswith(".")
    assert left.endswith(TEMPORARY)
    write_whole(path, b"new")
    assert names(tmp_path) == [left, "a.bin"]


def test_a_temporary_name_is_known_by_its_form() -> None:
    assert temporary_name("a.bin") == f".a.bin{TEMPORARY}"
    assert TEMPORARY == ".tmp"
