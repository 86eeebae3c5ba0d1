"""What damaged files have shown, each with the smallest input that shows it."""

from __future__ import annotations

import base64
import io
import json
import pickle
import re
import zipfile
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from anomtune.bounded import inflate, read_array, read_arrays
from anomtune.datasets.folder import Folder
from anomtune.datasets.io import mnist_m
from anomtune.datasets.io.cache import open_category
from anomtune.datasets.io.imagefile import read_rgb
from anomtune.datasets.io.masks import PackedMask
from anomtune.datasets.io.packed import read_idx_pair
from anomtune.datasets.io.store import cache_root
from anomtune.datasets.table import Table
from anomtune.errors import AnomtuneError, DataError, SweepError
from anomtune.models.layers.weights import read_weights
from anomtune.search.config import load_sweep
from anomtune.search.detector.memo import NodeMemo
from anomtune.search.results.result import open_sweep
from anomtune.search.run.checkpoint import Checkpoints
from anomtune.search.store.directory import read_sweep
from anomtune.search.store.lock import OwnerWatch
from anomtune.search.store.storage import Storage
from anomtune.search.yaml_text import read_yaml
from tests.conftest import draw_category
from tests.fuzz.damage import Payload, gzip_bomb, npz_bomb
from tests.search.sample_sweep import write_sample_sweep

DEEP = b"[" * 100_000
#: Bytes, twice as many as any reader unpacks.
_BOMB = 1 << 29


def message(error: pytest.ExceptionInfo[AnomtuneError]) -> str:
    text = str(error.value)
    assert text.isprintable(), "one line"
    assert len(text) < 2000
    return text


# YAML


def laughs(levels: int) -> str:
    lines = [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, levels)]
    return "\n".join(["a0: &a0 [x]", *lines])


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (laughs(12), "unfold to more than"),
        (laughs(12).replace("[", "{<<: [").replace("]", "]}").replace("[x]", "{x: 1}"), "unfold"),
        ("x: &x [*x]", "contains itself"),
        ("x: 0x" + "f" * 5000, "too long for a number"),
        ("x: !!int y", "not valid YAML"),
        ("x: " + "[" * 20_000, "nested too deep"),
    ],
)
def test_yaml_that_is_larger_than_it_looks(text, reason):
    with pytest.raises(SweepError, match=reason) as error:
        read_yaml(text, "a.yaml")
    assert message(error).startswith("a.yaml: not valid YAML")


def test_aliases_and_merges_of_people_are_read():
    text = "a: &a {x: 1}\nb: {<<: *a, y: [*a, *a]}\n"
    assert read_yaml(text, "a.yaml")["b"] == {"x": 1, "y": [{"x": 1}] * 2}


def test_a_value_of_a_megabyte_is_not_repeated(tmp_path):
    path = tmp_path / "sweep.yaml"
    path.write_text(
        "name: a\ndataset: {name: folder}\nmethods: {padim: {}}\ntrials: " + "x" * 10**6
    )
    with pytest.raises(SweepError) as error:
        load_sweep(path)
    assert message(error).startswith(f"{path}: trials: ")


# A sweep directory


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("written")
    write_sample_sweep(
        folder, categories=("bottle",), methods=("patchcore",), trials=2, confirm=1, seeds=(1,)
    )
    return folder


@pytest.fixture
def replace(written):
    """Puts another content in the place of a file, for the time of a test."""
    before: dict[Path, bytes] = {}

    def put(pattern: str, content: bytes | Any) -> Path:
        path = sorted(written.glob(pattern))[0]
        before.setdefault(path, path.read_bytes())
        path.write_bytes(content(before[path]) if callable(content) else content)
        return path

    yield put
    for path, content in before.items():
        path.write_bytes(content)


def changed(where: str, value: Any):
    def change(content: bytes) -> bytes:
        record = json.loads(content)
        *above, last = where.split(".")
        at = record
        for key in above:
            at = at[int(key) if isinstance(at, list) else key]
        at[last] = value
        return json.dumps(record).encode()

    return change


@pytest.mark.parametrize(
    ("pattern", "content"),
    [
        ("held_out.json", b"\xd9"),
        ("held_out.json", b'{"bottle": 3}'),
        ("held_out.json", DEEP),
        ("scorings/**/*.json", DEEP),
        ("scorings/**/*.json", b'{"a": 1}'),
        ("scorings/**/*.json", b'[{"sigma": 1}, {"border": 0}]'),
        ("scorings/**/*.json", b'[{"reduce": "top", "share": "top"}]'),
        ("held_out.json", json.dumps({"bottle": [10**30, 1]}).encode()),
        ("held_out.json", json.dumps({"bottle": [8, 2**53]}).encode()),
        ("held_out.json", json.dumps({"bottle": [-8, 8]}).encode()),
        ("trials/**/00000.json", DEEP),
        ("trials/**/00000.json", changed("facts.n_val_normal", 2**40)),
        ("trials/**/00000.json", changed("number", 2**40)),
        ("trials/**/00000.json", changed("facts.parameters", 10**30)),
        ("trials/**/00000.json", changed("params.scoring.reduce", ["max"])),
        ("trials/**/00000.json", changed("params.scoring", 3)),
        ("trials/**/00000.json", changed("cost.finished_at", "yesterday")),
        ("trials/**/00000.json", changed("cost.started_at", "0001-01-01T00:00:00+23:00")),
        ("trials/**/00000.json", changed("curve.3.judged.aurocs", "AAAA")),
        ("trials/**/00000.json", changed("curve.3.judged.aurocs", "not base64")),
        (
            "trials/**/00000.json",
            changed(
                "curve.3.judged.aurocs", base64.b64encode(zlib.compress(bytes(1 << 20))).decode()
            ),
        ),
    ],
)
def test_a_damaged_file_of_a_sweep_is_named(written, replace, pattern, content):
    path = replace(pattern, content)
    with pytest.raises(SweepError, match=path.name) as error:
        open_sweep(written).leaderboard  # noqa: B018
    assert "delete the file" in message(error)


@pytest.mark.parametrize("content", [DEEP, b"\xff", b"[]", b'{"a": 1}'])
def test_what_is_no_truth_may_be_damaged(written, content):
    _, store = read_sweep(written)
    before = (written / "searched.json").read_bytes()
    (written / "searched.json").write_bytes(content)
    assert store.read_searched() == {}
    (written / "searched.json").write_bytes(before)


@pytest.mark.parametrize("since", [3, "..", "2026-13-01", None, "0001-01-01T00:00:00+23:00"])
def test_an_owner_of_no_time(tmp_path, since):
    (tmp_path / "owner.json").write_text(json.dumps({"token": "a", "since": since}))
    assert OwnerWatch(Storage(tmp_path)).look().since is None


def npy(header: str) -> bytes:
    text = header.encode() + b"\n"
    return b"\x93NUMPY\x02\0" + len(text).to_bytes(4, "little") + text


@pytest.mark.parametrize(
    "content",
    [
        npy("("),  # which made the tokenizer give up
        npy("{'descr': '|u1', 'fortran_order': False, 'shape': (1099511627776,)}"),
        npy("{'descr': '|u1', 'fortran_order': False, 'shape': (-1,)}"),
        npy("{'descr': '|u1', 'fortran_order': False, 'shape': (True, 'x')}"),
        npy("{'descr': '<U99999999999', 'fortran_order': False, 'shape': (1,)}"),
        npy("9" * 5000),
        b"\x93NUMPY\x01\0\xff",
        b"",
    ],
)
def test_arrays_whose_header_says_too_much(written, replace, content):
    replace("trials/*/labels.npy", content)
    _, store = read_sweep(written)
    assert store.read_labels("bottle") is None
    with pytest.raises(ValueError):  # noqa: PT011 - whatever it says
        read_array(io.BytesIO(content), 1 << 20)


def test_nothing_in_an_array_is_unpickled(tmp_path, written, replace):
    mark = tmp_path / "run"
    bad = npy("{'descr': '|O', 'fortran_order': False, 'shape': (1,)}") + pickle.dumps(
        Payload(mark)
    )
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("validation.npy", bad)
        archive.writestr("scorings.npy", bad)
    replace("trials/**/*.npz", buffer.getvalue())
    assert open_sweep(written).leaderboard.num_rows == 1
    with pytest.raises(ValueError, match="Python objects"):
        read_arrays(buffer.getvalue(), 1 << 20)
    assert not mark.exists()
    pickle.loads(pickle.dumps(Payload(mark)))
    assert mark.exists(), "the payload itself works"


# Bombs, of which nobody unpacks more than a part


def test_bombs_are_not_unpacked(tmp_path):
    with pytest.raises(ValueError, match="more than"):
        read_arrays(npz_bomb("a.npy", _BOMB), 1 << 24)
    with pytest.raises(ValueError, match="more than"):
        inflate(zlib.compress(bytes(1 << 20)), 1 << 16)
    assert inflate(zlib.compress(b"abc"), 3) == b"abc"
    path = tmp_path / "mnistm_data.npz"
    path.write_bytes(npz_bomb("test_images.npy", _BOMB))
    with pytest.raises(DataError, match="more than") as error:
        mnist_m._load(path)
    assert str(path) in message(error)
    images, labels = tmp_path / "images.gz", tmp_path / "labels.gz"
    images.write_bytes(gzip_bomb(_BOMB))
    labels.write_bytes(gzip_bomb(_BOMB))
    with pytest.raises(DataError, match="more than") as error:
        read_idx_pair(images, labels)
    assert str(images) in message(error)


# Images and tables


def test_a_tiff_without_a_size(tmp_path):
    path = tmp_path / "a.tif"
    Image.new("L", (3, 3)).save(path)
    content = path.read_bytes()
    for tag in (b"\0\1", b"\1\1"):  # ImageWidth and ImageLength
        content = content.replace(tag + b"\4\0", b"\xf0\xf0\4\0", 1)
        content = content.replace(tag + b"\3\0", b"\xf0\xf0\3\0", 1)
    path.write_bytes(content)
    with pytest.raises(DataError) as error:
        read_rgb(path)
    assert message(error).startswith(str(path))


def test_a_mask_of_the_cache_that_is_damaged():
    for bits in (b"x", zlib.compress(bytes(9)), zlib.compress(b"")):
        with pytest.raises(DataError, match="remove its folder categories"):
            PackedMask((8, 8), bits).unpack()
    for shape in ((1 << 31, 32), (-8, 8), (0, 8)):
        with pytest.raises(DataError, match="remove its folder categories"):
            PackedMask(shape, b"").unpack()


def test_a_table_of_text_that_is_none(tmp_path):
    path = tmp_path / "parts.parquet"
    wrong = pa.array([b"\xff.png"]).cast(pa.binary()).view(pa.string())
    pq.write_table(pa.table({"image": wrong, "label": ["good"]}), path)
    with pytest.raises(DataError, match="cannot be read as Parquet") as error:
        Table(path).categories()
    assert str(path) in message(error)


def test_a_parquet_table_with_one_wrong_byte_ends_no_process(tmp_path):
    """Arrow 26 ends it where a column's metadata is asked for and its sums do not fit."""
    path = tmp_path / "parts.parquet"
    pq.write_table(
        pa.table({"image": ["0.png", "1.png"], "label": ["good", "bad"]}), path, store_schema=False
    )
    content = path.read_bytes()
    for place in range(len(content)):
        path.write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
        with suppress(DataError):
            Table(path).categories()


def test_a_parquet_table_of_wide_numbers(tmp_path):
    path = tmp_path / "parts.parquet"
    wide = pa.array([bytes(10_000)]).cast(pa.binary(10_000)).take(pa.array([0] * 1000))
    for _ in range(6):
        wide = pa.concat_arrays([wide, wide])
    pq.write_table(pa.table({"image": ["a.png"] * len(wide), "wide": wide}), path)
    assert path.stat().st_size < 10_000_000
    with pytest.raises(DataError, match="640000000 bytes of numbers"):
        Table(path).categories()


def test_a_table_of_many_rows_in_few_bytes(tmp_path):
    path = tmp_path / "parts.parquet"
    rows = pa.table({"image": pa.array(["a.png"] * 400_000), "label": pa.array([0] * 400_000)})
    with pq.ParquetWriter(path, rows.schema, compression="zstd") as file:
        for _ in range(5):
            file.write_table(rows)
    assert path.stat().st_size < 20_000
    with pytest.raises(DataError, match="2000000 rows"):
        Table(path).categories()


def test_a_table_that_says_one_long_text_in_every_row(tmp_path):
    path = tmp_path / "parts.parquet"
    text = pa.array(["x" * 200_000]).take(
        pa.array([0] * 5000, pa.int32()).cast(pa.int64()).slice(0, 9)
    )
    pq.write_table(pa.table({"image": text, "label": [0] * 9}), path)
    with pytest.raises(DataError, match="text of 200000 bytes"):
        Table(path).categories()


@pytest.mark.parametrize("key", ["cpu[", "(gpu", "float"])
def test_an_unknown_key_that_looks_like_a_type(tmp_path, key):
    path = tmp_path / "line.yaml"
    path.write_text(
        f"{{name: a, dataset: {{name: folder, root: /data, '{key}': 1}}, methods: {{toy: {{}}}}}}"
    )
    with pytest.raises(SweepError, match=re.escape(f"dataset.{key}: unknown key")):
        load_sweep(path)
    path.write_text(
        f"{{name: a, '{key}': 1, dataset: {{name: folder, root: /data}}, methods: {{toy: {{}}}}}}"
    )
    with pytest.raises(SweepError, match=re.escape(f"{key}: unknown key")):
        load_sweep(path)


def test_half_a_character_in_the_name_of_a_category(written, replace):
    replace("sweep.yaml", lambda content: content.replace(b"- bottle", b'- "\\uD800"'))
    with pytest.raises(AnomtuneError, match=r"no name that a file can have") as error:
        open_sweep(written).leaderboard  # noqa: B018
    assert str(written) in message(error)


def test_half_a_character_in_a_coco_file(tmp_path):
    content = {
        "images": [{"id": 1, "file_name": "\ud800.png"}],
        "annotations": [],
        "categories": [],
    }
    path = tmp_path / "parts.json"
    path.write_text(json.dumps(content))
    problems = [str(problem) for problem in Table(path).scan("parts")[1]]
    assert any("no such file" in problem for problem in problems)


def test_a_path_that_no_system_takes(tmp_path):
    path = tmp_path / "parts.csv"
    path.write_text(f"image,label,mask\n{'a' * 9000}.png,0,\nb.png,1,{'[' * 300}\n")
    problems = [str(problem) for problem in Table(path).scan("parts")[1]]
    assert sum("is not a path" in problem for problem in problems) == 2


@pytest.mark.parametrize("number", [10**400, -(10**400), 1e308])
def test_a_place_that_is_in_no_image(tmp_path, number):
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    shape = {"image_id": 1, "category_id": 1, "bbox": [0, 0, 3, number]}
    content = {
        "images": [{"id": 1, "file_name": "a.png"}],
        "annotations": [shape],
        "categories": [{"id": 1, "name": "scratch"}],
    }
    path = tmp_path / "parts.json"
    path.write_text(json.dumps(content))
    problems = Table(path).scan("parts")[1]
    assert any("numbers are meant" in str(problem) for problem in problems)


# What others keep


@pytest.mark.parametrize("content", [DEEP, b"{}", b"[1]", b'{"pixel_hashes": 3, "masks": 1}', None])
def test_a_damaged_entry_of_the_cache_is_built_again(tmp_path, monkeypatch, content):
    monkeypatch.setenv("ANOMTUNE_CACHE", str(tmp_path / "cache"))
    dataset = Folder(draw_category(tmp_path / "data/plate", train=2, good=2, bad=2).parent)
    open_category(dataset, "plate", 16)
    (meta,) = cache_root().glob("categories/*/meta.json")
    (images,) = cache_root().glob("categories/*/images.npy")
    if content is None:
        content = meta.read_bytes().replace(b'"masks": [[32', b'"masks": [[[]', 1)
    meta.write_bytes(content)
    assert len(open_category(dataset, "plate", 16).images) == 6
    images.write_bytes(npy("("))
    assert len(open_category(dataset, "plate", 16).images) == 6


def test_damaged_tensors_that_trials_share_are_computed_again(tmp_path, monkeypatch):
    monkeypatch.setenv("ANOMTUNE_CACHE", str(tmp_path))
    memo = NodeMemo(["a"])
    memo(["b"], lambda: {"x": torch.ones(2)})
    (path,) = tmp_path.glob("shared/*/*.safetensors")
    path.write_bytes(b"\xff" * 9)
    assert memo(["b"], lambda: {"x": torch.zeros(2)})["x"].sum() == 0


@pytest.mark.parametrize("results", ['"a"', "[1]", "{", "null", '{"a": 1}'])
def test_a_checkpoint_of_other_notes_is_none(tmp_path, results):
    from safetensors.torch import save

    checkpoints = Checkpoints(Storage(tmp_path), "trials/a/b/00001", "same")
    checkpoints.write({"x": torch.ones(2)}, ["{}"])
    (path,) = tmp_path.rglob("*.safetensors")
    path.write_bytes(save({"x": torch.ones(2)}, {"identity": "same", "results": results}))
    assert checkpoints.read() is None


def test_nothing_in_weights_is_run(tmp_path):
    mark = tmp_path / "run"
    torch.save({"a": Payload(mark)}, tmp_path / "net.pth")
    with pytest.raises(AnomtuneError, match="cannot be read as weights"):
        read_weights(tmp_path / "net.pth")
    assert not mark.exists()


def test_a_threshold_of_many_digits(tmp_path):
    from anomtune.search.detector.saved import load_detector

    (tmp_path / "config.yaml").write_text("format: " + "x" * 10**6)
    with pytest.raises(AnomtuneError) as error:
        load_detector(tmp_path)
    assert message(error).startswith(f"{tmp_path}/config.yaml")


def test_numbers_of_the_engine_are_what_they_say():
    array = read_arrays(np_bytes(a=np.arange(6).reshape(2, 3)), 1 << 20)["a"]
    assert array.tolist() == [[0, 1, 2], [3, 4, 5]]
    fortran = io.BytesIO()
    np.save(fortran, np.asfortranarray(np.arange(6).reshape(2, 3)))
    fortran.seek(0)
    assert read_array(fortran, 1 << 20).tolist() == [[0, 1, 2], [3, 4, 5]]


def np_bytes(**arrays: Any) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()
