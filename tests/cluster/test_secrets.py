"""Tokens and credentials appear in no file, log, output or command line of a whole sweep."""

from __future__ import annotations

import base64
import gzip
import io
import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import tempfile
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from tests.search.conftest import sweep_dict

pytestmark = pytest.mark.ray

VARIABLES = (
    "RAY_AUTH_TOKEN",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "MLFLOW_TRACKING_TOKEN",
    "HF_TOKEN",
    "LAB_PASSWORD",
    "LAB_KEY",
)
#: What each is, so that a find says whose it is.
MARKS = {name: f"{name.lower().replace('_', '')}{secrets.token_hex(12)}" for name in VARIABLES}


def contents(content: bytes, depth: int = 0) -> Iterator[bytes]:
    """Yields what a file holds, unpacked as far as anything in it is packed."""
    yield content
    if depth == 3:
        return
    if content[:2] == b"\x1f\x8b":
        yield from contents(gzip.decompress(content), depth + 1)
    if content[:2] == b"PK" and zipfile.is_zipfile(io.BytesIO(content)):
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            for name in archive.namelist():
                yield from contents(archive.read(name), depth + 1)
    if content[:4] == b"PAR1":
        table = pq.read_table(io.BytesIO(content))
        yield repr((table.to_pylist(), table.schema.metadata)).encode()
    for packed in re.findall(rb"[A-Za-z0-9+/]{60,}={0,2}", content)[:500]:
        if len(packed) % 4 == 0:
            yield from contents(base64.b64decode(packed), depth + 1)


def found_in(content: bytes) -> list[str]:
    """Returns which secrets stand there, as they are or as a header of HTTP has them."""
    found = []
    for text in contents(content):
        for name, mark in MARKS.items():
            # The middle of it, wherever in a longer text it begins.
            coded = [base64.b64encode(bytes(n) + mark.encode())[4:-4] for n in range(3)]
            if any(form in text for form in (mark.encode(), *coded)):
                found.append(name)
    return found


def test_the_search_finds_what_is_hidden(tmp_path):
    mark = MARKS["HF_TOKEN"].encode()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a", gzip.compress(b"x" * 99 + mark))
    login = base64.b64encode(b"user:" + mark)
    page = b"<script>" + base64.b64encode(gzip.compress(mark * 9)) + b"</script>"
    for content in (mark, buffer.getvalue(), login, page):
        assert found_in(content) == ["HF_TOKEN"] or set(found_in(content)) == {"HF_TOKEN"}
    assert not found_in(b"nothing" * 1000)


@pytest.fixture(scope="module")
def place():
    folder = Path(tempfile.mkdtemp(prefix="ray-"))  # short: Ray puts sockets into it
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def environment(place) -> dict[str, str]:
    left_out = {"ANOMTUNE_TEST_SERVER"}  # which has an environment of its own
    return {
        **{name: value for name, value in os.environ.items() if name not in left_out},
        **MARKS,
        "RAY_AUTH_MODE": "token",
        "RAY_TMPDIR": str(place / "ray"),
        "TRACKING": f"http://user:{MARKS['LAB_PASSWORD']}@127.0.0.1:9",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "1",
        "OMP_NUM_THREADS": "1",
        "HOME": str(place / "home"),
    }


class CommandLines:
    """What everybody on the machine can read of its processes, while a context lasts."""

    def __init__(self) -> None:
        self.seen: set[bytes] = set()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def _look(self) -> None:
        while not self._ended.wait(0.3):
            for process in Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    self.seen.add(process.read_bytes())
                except OSError:
                    continue

    def __enter__(self) -> CommandLines:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()


#: Runs commands in one process: what each imports is imported once.
_COMMANDS = """
import json, sys
from anomtune.cli.main import main
for words in json.loads(sys.argv[1]):
    sys.argv = ["anomtune", *words]
    try:
        main()
    except SystemExit as ended:
        assert not ended.code or words[0] == "doctor", words
"""


@pytest.fixture(scope="module")
def anomtune(environment, place):
    """Runs commands; what they print is kept, to be searched."""

    def call(*commands: tuple[object, ...]) -> None:
        words = json.dumps([[str(word) for word in command] for command in commands])
        done = subprocess.run(
            [sys.executable, "-c", _COMMANDS, words],
            check=False,
            env=environment,
            cwd=place,
            capture_output=True,
            text=True,
            timeout=300,
        )
        with (place / "printed.txt").open("a") as file:
            file.write(f"{done.stdout}\n{done.stderr}\n")
        assert done.returncode == 0, done.stderr

    return call


def test_a_whole_sweep_tells_no_secret(anomtune, place, toy_data):
    settings = sweep_dict(
        dataset={"name": "folder", "root": str(toy_data), "categories": ["plate"]},
        trials=2,
        confirm={"top": 1, "seeds": [1]},
        loggers=[{"name": "mlflow", "options": {"tracking_uri": "$TRACKING"}}],
    )
    file, directory = place / "sweep.yaml", place / "sweep"
    file.write_text(yaml.safe_dump(settings))
    model = directory / "models/plate/toy"
    with CommandLines() as lines:
        anomtune(("sweep", file, "--dir", directory))
        anomtune(
            ("leaderboard", directory, "--json"),
            ("best", directory, "--category", "plate"),
            ("status", directory, "--json"),
            ("report", directory),
            ("export", directory, "--optuna", f"sqlite:///{place}/studies.db"),
            ("export", directory, "--xlsx", place / "tables.xlsx"),
            ("predict", model, toy_data / "plate/test", "--out", place / "predicted"),
            ("doctor", file, "--dir", directory),
        )
    told = [line for line in lines.seen if found_in(line)]
    assert not told
    files = [path for path in place.rglob("*") if path.is_file()]
    kinds = {path.suffix for path in files}
    assert kinds >= {".json", ".npz", ".parquet", ".html", ".log", ".db", ".xlsx", ".safetensors"}
    assert any("tfevents" in path.name for path in files)
    assert any("raylet" in path.name for path in files), "Ray's own logs are searched"
    spilled = {str(path.relative_to(place)): found_in(path.read_bytes()) for path in files}
    assert not {name: marks for name, marks in spilled.items() if marks}


@pytest.mark.parametrize(
    "override",
    [
        "dataset.root=s3://user:{}@bucket/images",
        "dataset.root=s3://bucket/images?secret_key={}",
        "loggers=[{{name: mlflow, options: {{token: {}}}}}]",
        "loggers=[{{name: mlflow, options: {{tracking_uri: 'http://user:{}@host'}}}}]",
        "warm_start=['s3://user:{}@bucket/sweep']",
        "dataset={{name: folder, normal: 's3://user:{}@bucket/good', anomalous: 's3://b/bad'}}",
        "dataset={{name: table, root: /data/a.csv, images: 's3://user:{}@bucket'}}",
        "budget={}",
        "methods.toy.fixed.colour={}",
        "name.a={}",
        "trials=[{}",
    ],
)
def test_a_secret_that_is_set_is_not_repeated(run, toy_data, tmp_path, override):
    mark = MARKS["LAB_KEY"]
    file = tmp_path / "sweep.yaml"
    file.write_text(yaml.safe_dump(sweep_dict(toy_data)))
    words = ("sweep", file, "--dir", tmp_path / "sweep", "--set", override.format(mark))
    code, out, err = run(*words)
    assert code == 2, out + err
    if override.startswith(("dataset", "loggers", "warm", "name", "trials")):
        assert mark not in out + err
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path != file]
