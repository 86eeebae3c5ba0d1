"""New images: every readable one is scored, every other one is named."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import ExifTags, Image

from anomtune.datasets.io.files import image_files
from anomtune.errors import ImageError
from anomtune.names import BYTES, to_name
from anomtune.search.detector import predict as predict_module
from anomtune.search.detector.predict import load_model
from anomtune.search.detector.predictions import Results
from tests.search.toy_models import save_toy


@pytest.fixture(scope="module")
def model(tmp_path_factory, toy_data) -> Path:
    return save_toy(toy_data, tmp_path_factory.mktemp("models") / "plate")


def draw(path: Path, value: int, size: tuple[int, int] = (40, 30)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, value, value)).save(path)
    return path


@pytest.fixture
def images(tmp_path) -> Path:
    """Two dark images, a bright one, and two files that are none."""
    folder = tmp_path / "new"
    draw(folder / "b/dark.png", 70)
    draw(folder / "a/dark.png", 80)
    draw(folder / "bright.JPG", 250)
    (folder / "text.png").write_text("no image")
    (folder / "torn.bmp").write_bytes(draw(tmp_path / "x.bmp", 90).read_bytes()[:200])
    (folder / "readme.txt").write_text("not looked at")
    (folder / ".hidden.png").write_text("not looked at")
    return folder


def table(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((folder / "scores.csv").open()))


def test_a_folder_with_broken_files(run, model, images, tmp_path):
    out = tmp_path / "out"
    code, printed, err = run("predict", model, images, "--out", out)
    assert code == 1
    lines = err.splitlines()
    assert lines.pop() == (
        "2 passed over, no PNG, JPEG, BMP, TIFF or WebP file or hidden: "
        f"'{images}/.hidden.png', '{images}/readme.txt'"
    )
    assert len(lines) == 2
    assert lines[0].startswith(
        f"{images}/text.png: cannot be read as a PNG, JPEG, BMP, TIFF or WebP"
    )
    assert lines[1].startswith(f"{images}/torn.bmp: ")
    assert "3 images scored, 1 of them anomalous; 2 cannot be read" in printed
    rows = table(out)
    names = [f"{images}/{name}" for name in ("a/dark.png", "b/dark.png", "bright.JPG")]
    assert [row["path"] for row in rows] == names
    assert [row["anomalous"] for row in rows] == ["false", "false", "true"]
    config = yaml.safe_load((model / "config.yaml").read_text())
    assert {float(row["threshold"]) for row in rows} == {config["threshold"]}
    report = json.loads((out / "scores.json").read_text())
    assert report["threshold"] == config["threshold"]
    assert [row["path"] for row in report["images"]] == names
    assert [row["score"] for row in report["images"]] == [float(row["score"]) for row in rows]
    assert [row["path"] for row in report["unreadable"]] == [
        f"{images}/text.png",
        f"{images}/torn.bmp",
    ]
    drawn = sorted(path.relative_to(out).as_posix() for path in out.rglob("*.png"))
    assert drawn == ["maps/a/dark.png.png", "maps/b/dark.png.png", "maps/bright.JPG.png"]
    assert sorted(row["map"] for row in report["images"]) == drawn
    assert Image.open(out / drawn[0]).size == (32, 32)


def test_python_says_what_the_command_says(run, model, images, tmp_path):
    run("predict", model, images, "--out", tmp_path / "out", "--no-maps")
    unreadable: list[ImageError] = []
    found = list(load_model(model).predict([images], unreadable=unreadable))
    assert [(str(p.path), str(p.score), str(p.anomalous).lower()) for p in found] == [
        (row["path"], row["score"], row["anomalous"]) for row in table(tmp_path / "out")
    ]
    assert len(unreadable) == 2
    assert found[0].map.shape == (32, 32)
    assert not (tmp_path / "out/maps").exists()
    with pytest.raises(ImageError, match=r"text\.png"):
        list(load_model(model).predict([images]))


def test_the_saved_threshold_decides(run, model, images, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "weights.safetensors").write_bytes((model / "weights.safetensors").read_bytes())
    config = yaml.safe_load((model / "config.yaml").read_text())
    score = next(iter(load_model(model).predict([images / "a/dark.png"]))).score
    for threshold, expected in ((score, "true"), (score + 1e-6, "false")):
        (other / "config.yaml").write_text(yaml.safe_dump(config | {"threshold": threshold}))
        out = tmp_path / f"out-{expected}"
        assert run("predict", other, images / "a/dark.png", "--out", out)[0] == 0
        assert [row["anomalous"] for row in table(out)] == [expected]


@pytest.mark.parametrize("side", [0, 48])
def test_images_are_resized_as_for_training(toy_data, tmp_path, side):
    folder = save_toy(toy_data, tmp_path / "model", side=side)
    detector = load_model(folder)
    paths = sorted((toy_data / "plate/train/good").iterdir())
    found = list(detector.predict(paths, batch_size=4))
    assert [p.path for p in found] == paths
    assert found[0].image.shape == (side or 32, side or 32, 3)
    if not side:
        assert np.array_equal(found[0].image, np.asarray(Image.open(paths[0])))
    alone = [next(iter(detector.predict([path]))).score for path in paths]
    assert [p.score for p in found] == pytest.approx(alone, rel=1e-6)


def test_only_a_few_images_are_in_memory(model, tmp_path, monkeypatch):
    read: list[Path] = []
    decode = predict_module.read_rgb
    monkeypatch.setattr(predict_module, "read_rgb", lambda path: read.append(path) or decode(path))
    paths = [draw(tmp_path / f"{index:03}.png", index) for index in range(40)]
    predictions = load_model(model).predict(iter(paths), batch_size=4)
    for done in range(1, 41):
        assert next(predictions).path == paths[done - 1]
        assert len(read) <= done + 12


def test_equal_names_get_maps_of_their_own_and_none_leaves_the_folder(run, model, tmp_path):
    one = draw(tmp_path / "one/x.png", 60)
    two = draw(tmp_path / "two/x.png", 250)
    draw(tmp_path / "two/x.jpg", 70)
    odd = Path(os.path.relpath(tmp_path), "one", "..", "two")
    out = tmp_path / "out"
    assert run("predict", model, one, odd, one, "--out", out)[0] == 0
    drawn = sorted(
        path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("maps/**/*.png")
    )
    assert drawn == [
        "out/maps/one/x.png.png",
        "out/maps/two/x.jpg.png",
        "out/maps/two/x.png.png",
    ]
    assert len(table(out)) == 4
    dark, bright = (np.asarray(Image.open(out / f"maps/{n}/x.png.png")) for n in ("one", "two"))
    assert not np.array_equal(dark, bright)
    assert two.exists()


def test_an_earlier_result_is_replaced_and_nothing_else(run, model, images, tmp_path):
    out = tmp_path / "out"
    run("predict", model, images, "--out", out)
    assert run("predict", model, images / "a", "--out", out)[0] == 0
    assert len(table(out)) == 1
    assert [path.name for path in (out / "maps").rglob("*.png")] == ["dark.png.png"]
    for name in ("notes.txt", "maps/mine.png"):
        other = tmp_path / name.replace("/", "-")
        (other / name).parent.mkdir(parents=True)
        (other / name).write_text("mine")
        code, _, err = run("predict", model, images, "--out", other)
        assert code == 2
        assert "holds something else" in err
        assert (other / name).read_text() == "mine"


def test_bad_input_is_one_line_and_writes_nothing(run, model, images, tmp_path):
    out = tmp_path / "out"
    (tmp_path / "empty").mkdir()
    cases = [
        ((tmp_path / "absent", images), "no config.yaml there; give the folder of a saved model"),
        ((images, images), "no config.yaml there"),
        ((model, tmp_path / "absent"), "absent: no such file or folder"),
        ((model, tmp_path / "empty"), "empty: no image there"),
    ]
    for arguments, expected in cases:
        code, printed, err = run("predict", *arguments, "--out", out)
        assert (code, printed) == (2, "")
        assert expected in err
        assert err.count("\n") == 1
        assert not out.exists()
    code, _, err = run("predict", model, images, "--out", images / "out")
    assert code == 2
    assert "whose images are scored" in err
    assert not (images / "out").exists()


def test_files_are_found_by_name_and_links_to_folders_are_not_followed(images):
    (images / "loop").symlink_to(images)
    (images / "z.png").symlink_to(images / "a/dark.png")
    found = [path.relative_to(images).as_posix() for path in image_files([images])]
    assert found == ["a/dark.png", "b/dark.png", "bright.JPG", "text.png", "torn.bmp", "z.png"]


def test_images_are_scored_upright(model, tmp_path):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    picture.save(tmp_path / "a.png")
    picture.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "b.png", exif=exif)
    upright, turned = load_model(model).predict([tmp_path / "a.png", tmp_path / "b.png"])
    assert (upright.image == turned.image).all()
    assert upright.score == turned.score


ODD = (
    b"M\xfcller.png",
    b"[red] \x1b[31m.png",
    b"two\nlines\r\t.png",
    b"-x.png",
    b"\xe9" * 251 + b".png",
    "ü".encode() * 125 + b"y.png",
    b"a\\xfc.png",
    b"a,\"b';.png",
    b"dir.png/inner.png",
    b"dir.png.d/inner.png",
    b"dir/x.png",
    b"dir",
)


def test_any_name_is_scored_and_found_again(run, model, tmp_path):
    folder, out = tmp_path / "new", tmp_path / "out"
    draw(folder / "plain.png", 250)
    content = (folder / "plain.png").read_bytes()
    given = [name for name in ODD if name != b"dir"] + [b"dir.png.png"]
    for name in given:
        path = folder / os.fsdecode(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    (folder / "dir").mkdir(exist_ok=True)
    (folder / os.fsdecode(b"torn\xff.png")).write_text("no image")
    code, _, err = run("predict", model, folder, "--out", out)
    assert code == 1
    assert err.startswith(f"{folder}/torn\\xff.png: cannot be read")
    with (out / "scores.csv").open(**BYTES, newline="") as file:
        rows = list(csv.DictReader(file))
    expected = {os.fsencode(folder) + b"/" + name for name in [*given, b"plain.png"]}
    assert {row["path"].encode("utf-8", "surrogateescape") for row in rows} == expected
    report = json.loads((out / "scores.json").read_text(encoding="utf-8"))
    assert {os.fsencode(to_name(row["path"])) for row in report["images"]} == expected
    maps = [out / to_name(row["map"]) for row in report["images"]]
    assert len(set(maps)) == len(expected)
    assert all(path.is_file() for path in maps)
    assert [to_name(row["path"]) for row in report["unreadable"]] == [
        str(folder / os.fsdecode(b"torn\xff.png"))
    ]


def test_an_end_with_an_error_leaves_no_table(model, images, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(RuntimeError), Results(out, load_model(model).config, [images], maps=False):
        raise RuntimeError
    assert list(out.iterdir()) == []
