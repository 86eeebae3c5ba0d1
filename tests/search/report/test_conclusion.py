"""The three sentences at the end of a sweep."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from anomtune.search.report.answer import answer
from anomtune.search.report.conclusion import conclude
from anomtune.search.report.evidence import Evidence, gather
from anomtune.search.report.more_images import foretell
from anomtune.search.report.verdict import NOT_BETTER
from anomtune.search.store.directory import read_sweeps
from tests.search.sample_sweep import write_sample_sweep


@pytest.fixture(scope="module")
def evidence(tmp_path_factory: pytest.TempPathFactory) -> Evidence:
    where = tmp_path_factory.mktemp("sweep")
    write_sample_sweep(where)
    return gather(*read_sweeps([where]))


def with_verdicts(evidence: Evidence, *, tied_with_paper, marks=(), tied=()) -> Evidence:
    return replace(
        evidence,
        categories=[
            replace(
                category,
                tied_with_paper=tied_with_paper,
                verdict=replace(category.verdict, marks=marks, tied=tied),
            )
            for category in evidence.categories
        ],
    )


def test_what_was_found_is_the_mean_of_the_first_rows(evidence):
    rows = [category.studies[0].row for category in evidence.categories]
    found = conclude(evidence).found
    values = [row["test_auroc_mean"] for row in rows]
    papers = [row["default_test_auroc_mean"] for row in rows]
    n = len(rows)
    assert n > 1
    assert f"First in {n} categories" in found
    assert f"held-out AUROC {sum(values) / n:.3f} on average" in found
    assert f"({min(values):.3f} to {max(values):.3f})" in found
    assert f"{(sum(values) - sum(papers)) / n:+.3f} over the papers' own configs" in found


def test_how_sure_counts_categories(evidence):
    n = len(evidence.categories)
    widths = [c.studies[0].held_out.high - c.studies[0].held_out.low for c in evidence.categories]
    certain = conclude(with_verdicts(evidence, tied_with_paper=False)).sure
    assert certain.startswith(
        f"95 % intervals of these figures are {sum(widths) / n:.2f} wide on average;"
    )
    assert certain.endswith(f"the gain is more than chance in {n} of {n}.")
    assert "cannot be told" not in certain
    chance = conclude(with_verdicts(evidence, tied_with_paper=True, tied=("b",))).sure
    assert f"in {n} of {n} the first cannot be told from another method" in chance
    assert chance.endswith(f"more than chance in 0 of {n}.")
    unknown = conclude(with_verdicts(evidence, tied_with_paper=None)).sure
    assert unknown.endswith("whether gains are more than chance is not known.")
    # Told from the paper's config, but below it.
    worse = conclude(with_verdicts(evidence, tied_with_paper=False, marks=(NOT_BETTER,))).sure
    assert worse.endswith(f"more than chance in 0 of {n}.")


def test_a_single_category_is_named(evidence):
    one = replace(evidence, categories=evidence.categories[:1])
    name, method = one.categories[0].name, one.categories[0].verdict.method
    assert conclude(one).found.startswith(f"{name}: {method} is first; held-out AUROC ")
    alone = with_verdicts(one, tied_with_paper=True)
    assert conclude(alone).sure.endswith("the gain may be chance.")
    assert conclude(with_verdicts(one, tied_with_paper=None)).sure.endswith(" wide.")


def test_what_comes_next_foretells_the_intervals(evidence):
    if any(study.progress.owed for study in evidence.studies):
        assert conclude(evidence).next.startswith("Let the sweep go on")
    done = replace(
        evidence,
        categories=[
            replace(
                category,
                studies=[
                    replace(s, progress=replace(s.progress, target=s.progress.ended))
                    for s in category.studies
                ],
            )
            for category in evidence.categories
        ],
    )
    more = [
        foretell(*category.studies[0].measured, evidence.config.validation)
        for category in evidence.categories
    ]
    now, then = (sum(m.after(k).width for m in more) / len(more) for k in (0, 100))
    sentence = conclude(done).next
    assert f"100 more of each category would make the intervals {then:.2f} wide" in sentence
    assert f"instead of {now:.2f};" in sentence


def test_nothing_is_said_without_a_result(evidence):
    nothing = [
        replace(category, verdict=replace(category.verdict, method=None))
        for category in evidence.categories
    ]
    assert conclude(replace(evidence, categories=nothing)) is None
    half = conclude(replace(evidence, categories=[*nothing[:1], *evidence.categories[1:]]))
    assert "none in 1 without a completed trial" in half.found


@pytest.mark.parametrize(("top", "words"), [(2, "Give it more hours"), (0, "Set confirm.top to 1")])
def test_a_sweep_without_confirm_runs_says_why(evidence, top, words):
    def ended(study):
        row = {**study.row, "n_seeds": None, "test_auroc_mean": None}
        progress = replace(study.progress, target=study.progress.ended, confirm_target=0)
        return replace(study, row=row, measured=None, progress=progress)

    config = evidence.config
    bare = replace(
        evidence,
        config=config.model_copy(
            update={"confirm": config.confirm.model_copy(update={"top": top})}
        ),
        categories=[
            replace(category, studies=[ended(study) for study in category.studies])
            for category in evidence.categories
        ],
    )
    conclusion = conclude(bare)
    assert conclusion.next.startswith(words)
    assert conclusion.sure.startswith("Nothing is checked on held-out images")
    assert "held-out" not in conclusion.found
    assert answer(bare.categories[0], bare.config, None, None).next == conclusion.next


def test_figures_of_some_categories_are_not_told_as_if_of_all(evidence):
    def bare(category):
        first, *others = category.studies
        row = {**first.row, "test_auroc_mean": None, "default_test_auroc_mean": None}
        studies = [replace(first, row=row, measured=None), *others]
        return replace(category, studies=studies, tied_with_paper=None)

    n = len(evidence.categories)
    most = [bare(category) for category in evidence.categories[1:]]
    known = with_verdicts(evidence, tied_with_paper=False).categories[0]
    one = replace(evidence, categories=[known, *most])
    found = conclude(one)
    value = known.studies[0].row["test_auroc_mean"]
    assert f"held-out AUROC in 1 of them {value:.3f}" in found.found
    assert found.sure.endswith(f"more than chance in 1 of {n}, not known in {n - 1}.")


def test_without_held_out_images_it_quotes_what_ranks(evidence):
    category = evidence.categories[0]
    first = category.studies[0]
    row = {**first.row, "test_auroc_mean": None, "confirmed_auroc_mean": 0.612, "val_auroc": 0.99}
    studies = [replace(first, row=row, measured=None), *category.studies[1:]]
    one = replace(evidence, categories=[replace(category, studies=studies)])
    assert "validation AUROC 0.612." in conclude(one).found


def test_images_that_say_nothing_are_asked_for(evidence):
    category = evidence.categories[0]
    first = category.studies[0]
    labels, scores = first.measured
    one_defect = np.flatnonzero(labels == 1)[1:]
    few = np.delete(labels, one_defect), np.delete(scores, one_defect, axis=-1)
    for measured in (few, (labels, np.zeros_like(scores))):
        assert foretell(*measured, evidence.config.validation) is None
        progress = replace(first.progress, target=first.progress.ended)
        studies = [replace(first, measured=measured, progress=progress)]
        poor = replace(category, studies=studies)
        assert answer(poor, evidence.config, None, None).next.startswith("Label more images")
        assert conclude(replace(evidence, categories=[poor])).next.startswith("Label more images")
