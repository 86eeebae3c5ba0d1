"""`anomtune methods`: what trial 0 of a study has, and where each value is from."""

from __future__ import annotations

import re

import pytest


def rows(out: str) -> dict[str, str]:
    """Returns what the table says of each hyperparameter, on one line."""
    found: dict[str, str] = {}
    name = ""
    for line in out.splitlines():
        if re.match(r"[a-z][\w.]* ", line):
            name = line.split()[0]
        found[name] = " ".join((found.get(name, "") + " " + line.strip()).split())
    return found


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "1000")


def test_a_category_has_the_papers_own_values_and_their_source(run) -> None:
    code, out, _ = run("methods", "recontrast", "--dataset", "mvtec", "--category", "leather")
    assert code == 0
    assert out.startswith("recontrast on mvtec/leather")
    row = rows(out)["encoder_bn"]
    assert row.startswith("encoder_bn eval train, eval, partial, partial_pretrained ")
    assert "For mvtec/toothbrush, leather, grid, tile, wood, screw: official code" in row
    assert "published: auroc 1, pixel_auroc 0.995, aupro_per_image 0.992 (Guo et al." in out
    assert "(inferred)" not in out
    code, out, _ = run("methods", "recontrast", "--dataset", "mvtec", "--category", "bottle")
    assert rows(out)["encoder_bn"].startswith("encoder_bn train ")
    assert "For mvtec" not in out


def test_what_is_inferred_is_marked(run) -> None:
    code, out, _ = run("methods", "ssae", "--dataset", "mvtec", "--category", "hazelnut")
    assert code == 0
    table = rows(out)
    assert table["augment"].startswith("augment all fixed For mvtec/")
    assert "(inferred): paper, section 4" in table["augment"]
    assert "(inferred)" in table["scoring.t"]
    assert "published: auroc 1" in out
    _, out, _ = run("methods", "ssae", "--dataset", "mvtec", "--category", "cable")
    assert "(inferred)" not in rows(out)["scoring.diff"]


def test_a_dataset_alone_shows_what_holds_for_all_of_it_and_what_differs(run) -> None:
    code, out, _ = run("methods", "recontrast", "--dataset", "visa")
    assert code == 0
    assert rows(out)["iterations"].startswith("iterations 3000 ")
    assert rows(out)["encoder_bn"].startswith("encoder_bn train ")
    assert "encoder_bn eval\n  For visa/cashew, pcb1: official code" in out


def test_without_a_dataset_every_difference_is_listed(run) -> None:
    code, out, _ = run("methods", "gnl")
    assert code == 0
    assert rows(out)["backbone"].startswith("backbone wide_resnet50_2 ")
    assert "backbone resnet18, epochs 5\n  For mnist: GNL, supplement" in out
    assert "resolution 32, pixels unit, scoring.sigma 32.0\n  For mnist (inferred): " in out


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--category", "tile"), "--category: of which dataset? give --dataset as well"),
        (
            ("--dataset", "mvtec", "--category", "tyle"),
            "--category: no category 'tyle' of mvtec; there is carpet",
        ),
        (("--dataset", "mvtek"), "did you mean 'mvtec'?"),
    ],
)
def test_what_a_table_would_silently_not_know_is_refused(run, options, reason) -> None:
    code, out, err = run("methods", "recontrast", *options)
    assert code == 2
    assert out == ""
    assert reason in err
    assert len(err.strip().splitlines()) == 1


def test_a_folder_of_ones_own_has_any_category(run) -> None:
    code, out, _ = run("methods", "rd4ad", "--dataset", "folder", "--category", "line-3")
    assert code == 0
    assert out.startswith("rd4ad on folder/line-3")


def test_sizes_are_shown_as_parts_of_the_sweeps(run) -> None:
    for method, sizes in (
        ("gmm_contrastive", "0.75, 1 or 1.5 of image_size"),
        ("patchcore", "0.75, 1, 1.5 or 2 of image_size"),
        ("spr", "128, 192, 256"),
    ):
        code, out, _ = run("methods", method)
        assert code == 0
        default = "192" if method == "spr" else "None"
        assert rows(out)["resolution"].startswith(f"resolution {default} {sizes} Side of the ")
    _, out, _ = run("methods", "rd4ad", "--dataset", "mnist", "--category", "3")
    assert rows(out)["resolution"].startswith("resolution 32 fixed For mnist: ")


def test_both_lengths_are_shown(run) -> None:
    _, out, _ = run("methods", "rd4ad")
    assert rows(out)["epochs"].startswith("epochs 200 fixed Passes over the training images.")
    assert rows(out)["iterations"].startswith("iterations None fixed Optimiser steps; null: epochs")
