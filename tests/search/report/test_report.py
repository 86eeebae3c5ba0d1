"""The report: what it concludes, what stands on the page, and that a browser shows it."""

from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
from typer.testing import CliRunner

from anomtune.errors import SweepError
from anomtune.models.hyperparameters import Choice, FloatRange
from anomtune.search.report import write_report
from anomtune.search.report.accuracy_figures import pareto, roc
from anomtune.search.report.evidence import gather
from anomtune.search.report.overview import heat_maps, leaderboard
from anomtune.search.report.page import render
from anomtune.search.report.search_figures import (
    best_so_far,
    history,
    importances,
    parallel,
    pruning,
    short,
    slice_of,
    time_unit,
)
from anomtune.search.report.traces import text
from anomtune.search.report.verdict import (
    Mark,
    Progress,
    Verdict,
    judge,
    milliseconds,
    signed,
    summarise_verdicts,
)
from anomtune.search.results.leaderboard import LEADERBOARD_SCHEMA
from anomtune.search.store.records import HeldOutScores, Rung, TrialRecord, open_sweep
from tests.search.sample_sweep import write_sample_sweep

DONE = Progress(12, 12, 6, 6)


def row(method="a", rank=1, **changes) -> dict:
    """Returns a row of the leaderboard: confirmed, alone at the top, better than the paper's."""
    blank = dict.fromkeys(LEADERBOARD_SCHEMA.names)
    return (
        blank
        | {
            "category": "plate",
            "method": method,
            "rank": rank,
            "params": "{}",
            "trial_number": 3,
            "val_auroc": 0.949,
            "val_auroc_low": 0.834,
            "val_auroc_high": 0.986,
            "gain": 0.012,
            "confirmed_auroc_mean": 0.94,
            "confirmed_auroc_std": 0.01,
            "test_auroc_mean": 0.93,
            "test_auroc_std": 0.012,
            "default_test_auroc_mean": 0.924,
            "n_seeds": 3,
            "validation": "labelled",
            "trials": 12,
            "failed": 0,
            "image_ms": 15.2,
        }
        | changes
    )


UNCONFIRMED = dict.fromkeys(
    ("confirmed_auroc_mean", "confirmed_auroc_std", "test_auroc_mean", "test_auroc_std",
     "default_test_auroc_mean", "n_seeds")
)  # fmt: skip
EMPTY = UNCONFIRMED | dict.fromkeys(("params", "trial_number", "val_auroc", "gain", "image_ms"))


def said(rows, progress=DONE, told_apart=()) -> str:
    return " ".join(judge(rows, progress, told_apart).sentences)


def test_a_clear_winner():
    verdict = judge([row(), row("b", 2, tied=False)], DONE, [True, True, True])
    assert verdict.method == "a"
    assert verdict.tied == ()
    assert verdict.sentences == (
        "a: validation AUROC 0.949 (0.834-0.986), 0.940 ± 0.010 when retrained with 3 seeds; "
        "held out 0.930 ± 0.012.",
        "+0.006 over the paper's own config on held-out images, more than chance with 3 of 3 "
        "seeds (paired DeLong, 5 %).",
        "It can be told from every other method (paired DeLong, 5 %).",
    )
    assert [mark.kind for mark in verdict.marks] == ["good", "good"]


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (
            [row(tied=True), row("b", 2, tied=True, image_ms=3.14), row("c", 3, tied=True)],
            "cannot tell it from b, c (paired DeLong, 5 %); the cheapest of them is b "
            "(3.1 ms/image)",
        ),
        (
            [row(tied=True, image_ms=0.5), row("b", 2, tied=True), row("c", 3, tied=False)],
            "cannot tell it from b (paired DeLong, 5 %); it is also the cheapest of them "
            "(0.50 ms/image)",
        ),
        ([row(image_ms=None), row("b", 2, tied=True, image_ms=None)], "it from b (paired DeLong"),
        ([row(), row("b", 2, tied=None)], "It could not be compared with b image by image."),
        (
            [row(), row("b", 2, tied=False), row("c", 3, tied=None)],
            "told from the others (paired DeLong, 5 %). It could not be compared with c",
        ),
        ([row()], "the only method of the sweep"),
        ([row(), row("b", 2, **EMPTY)], "No other method has a completed trial."),
    ],
)  # fmt: skip
def test_against_the_other_methods(rows, expected):
    assert expected in said(rows)


@pytest.mark.parametrize(
    ("changes", "told_apart", "expected"),
    [
        ({}, [False, False, False], "too little for these images to tell the two apart"),
        ({}, [True, False, False], "more than chance with 1 of 3 seeds"),
        ({}, [], "+0.006 over the paper's own config on held-out images."),
        ({"test_auroc_mean": 0.92}, [False] * 3, "Not better than the paper's own config on held"),
        ({"test_auroc_mean": 0.924}, [], "Not better than the paper's own config on held"),
        ({"trial_number": 0}, [], "It is the paper's own config"),
        ({"default_test_auroc_mean": None}, [], "own config is not confirmed"),
        (UNCONFIRMED, [], "+0.012 over the paper's own config on validation, which flatters"),
        (UNCONFIRMED | {"gain": None}, [], "own config did not complete"),
    ],
)
def test_against_the_papers_config(changes, told_apart, expected):
    assert expected in said([row(**changes)], told_apart=told_apart)


def test_what_the_accuracy_rests_on():
    assert "Nothing is confirmed" in said([row(**UNCONFIRMED)])
    optimistic = said([row(**UNCONFIRMED, validation="test")])
    assert "optimistic" in optimistic
    assert "Nothing is confirmed" not in optimistic
    assert "no held-out images of both kinds" in said([row(test_auroc_mean=None)])
    assert "± " not in said([row(n_seeds=1, confirmed_auroc_std=None, test_auroc_std=None)])
    assert "with 1 seed;" in said([row(n_seeds=1)])


def test_failures_and_what_is_not_finished():
    rows = [row(), row("b", 2, tied=False, failed=3), row("c", 3, **EMPTY, failed=12)]
    assert "15 of 36 trials failed (b 3, c 12). c has no completed trial." in said(rows)
    only = judge([row(**EMPTY, failed=12)], DONE)
    assert only.method is None
    assert "every one of the 12 trials failed" in only.sentences[0]
    pruned = judge([row(**EMPTY, failed=2)], DONE)
    assert pruned.sentences == ("No method has a completed trial. 2 of 12 trials failed.",)
    started = judge([row(**EMPTY, trials=0)], Progress(0, 12))
    assert "no completed trial yet" in " ".join(mark.text for mark in started.marks)
    assert "0 of 12 trials done" in " ".join(started.sentences)
    assert "5 of 6 confirm runs done" in said([row()], Progress(12, 12, 5, 6))


def test_the_summary_counts_categories():
    def verdict(method, tied=(), marks=()):
        return Verdict("plate", method, tied, (), marks)

    better = Mark("caution", "not better than the paper's config")
    found = summarise_verdicts(
        [verdict("a", ("b",)), verdict("a", marks=(better,)), verdict("b"), verdict(None)]
    )
    assert "of 3 categories with a result: a in 2, b in 1" in found[0]
    assert found[1].startswith("In 1 of them the images cannot tell")
    assert found[2].startswith("In 1 of them the search did not improve")
    assert summarise_verdicts([verdict("a")]) == []
    assert summarise_verdicts([verdict(None), verdict(None)]) == []


def test_numbers_in_words():
    assert signed(-0.0004) == "+0.000"
    assert signed(-0.0006) == "-0.001"
    assert [short(v) for v in (0.00123, 166.4, 25_000.0, 3e7, "max", 5)] == [
        "0.00123", "166", "25000", "3e+07", "max", "5",
    ]  # fmt: skip
    assert [milliseconds(value) for value in (0.4231, 3.14, 9.96, 151.7)] == [
        "0.42",
        "3.1",
        "10",
        "152",
    ]


def trial(number, *aurocs, state="COMPLETE", **params) -> TrialRecord:
    curve = [
        Rung(step=step, auroc=value, auroc_low=0, auroc_high=1)
        for step, value in enumerate(aurocs, start=1)
    ]
    return TrialRecord(
        dataset="folder", category="plate", method="toy", number=number, state=state,
        params=params, seed=0, split_hash="s", curve=curve,
        cost={"train_seconds": 10, "finished_at": f"2026-01-01T00:00:{9 - number:02d}+00:00"},
    )  # fmt: skip


TRIALS = [
    trial(0, 0.5, 0.6, lr=0.1, kind="x"),
    trial(1, 0.7, 0.9, lr=0.01, kind="y"),
    trial(2, 0.4, state="PRUNED", lr=0.9, kind="y"),
    trial(3, 0.8, 0.8, lr=0.02, kind="x"),
    trial(4, 0.3, state="FAIL", lr=0.5, kind="x"),
    trial(5, 0.2, state="RUNNING", lr=0.5, kind="x"),
]
SPACE = {"lr": FloatRange(low=0.01, high=1, log=True), "kind": Choice(choices=("x", "y", "z"))}


def by_name(figure) -> dict:
    return {trace["name"]: trace for trace in figure["data"]}


def test_search_curves():
    assert best_so_far(TRIALS, {0: 0, 1: 1, 2: 2, 3: 3}) == [(0, 0.6), (1, 0.9), (3, 0.9)]
    over_trials = by_name(history(TRIALS))
    assert over_trials["pruned"]["y"] == [0.4]
    assert over_trials["completed"]["x"] == [0, 1, 3]
    # In time, trials stand in the order of their end, which was the reverse; 10 s each.
    over_time = history(TRIALS, by_time=True)
    assert over_time["layout"]["xaxis"]["title"]["text"] == "compute (seconds)"
    best = by_name(over_time)["best so far"]
    assert (best["x"], best["y"]) == ([20, 40, 50], [0.8, 0.9, 0.9])
    assert history([]) is None
    assert history([TRIALS[5]]) is None
    assert history([TRIALS[4]]) is None


def test_pruning_tells_the_trials_apart():
    traces = by_name(pruning(TRIALS))
    assert set(traces) == {"pruned", "failed", "running", "completed", "paper's config", "best"}
    assert traces["best"]["y"] == [0.7, 0.9, None]
    assert traces["completed"]["customdata"] == [3, 3, None]
    assert pruning([trial(0)]) is None


def test_slices_and_parallel_coordinates():
    kinds = slice_of(TRIALS, "kind", SPACE["kind"])
    assert kinds["layout"]["xaxis"]["categoryarray"] == ["x", "y", "z"]
    rates = by_name(slice_of(TRIALS, "lr", SPACE["lr"]))
    assert rates["best"]["x"] == [0.01]
    assert rates["pruned"]["x"] == [0.9]
    lines = by_name(parallel(TRIALS, SPACE, ["lr", "kind"]))
    assert lines["best"]["y"] == [0.0, 0.5, 1.0, None]
    assert parallel(TRIALS, SPACE, ["lr"]) is None
    assert parallel(TRIALS[4:], SPACE, ["lr", "kind"]) is None
    assert slice_of(TRIALS[4:], "lr", SPACE["lr"]) is None


def test_importances_need_trials_that_differ():
    import optuna

    distribution = optuna.distributions.FloatDistribution(0, 1)

    def study(values):
        built = optuna.create_study(direction="maximize")
        for index, value in enumerate(values):
            params = {"matters": value, "idle": index * 7 % 10 / 10}
            built.add_trial(
                optuna.trial.create_trial(
                    params=params, value=value, distributions=dict.fromkeys(params, distribution)
                )
            )
        return built

    shares = importances(study([index / 20 for index in range(20)]))
    assert next(iter(shares)) == "matters"
    assert sum(shares.values()) == pytest.approx(1)
    assert importances(study([0.5] * 20)) is None
    assert importances(study([0.1, 0.2])) is None
    assert importances(study([])) is None


def test_pareto_and_units():
    points = [(3, 0.9), (1, 0.8), (2, 0.7), (4, 0.95), (3, 0.85), (5, 0.95)]
    assert pareto(points) == [(1, 0.8), (3, 0.9), (4, 0.95)]
    assert [time_unit(s)[1] for s in (50, 150, 8000, 200_000)] == [
        "seconds", "minutes", "hours", "days",
    ]  # fmt: skip


def test_roc_is_bounded_and_skips_what_cannot_be_drawn():
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 2, 20_000).astype(np.int8)
    scores = (labels + generator.normal(size=20_000)).astype(np.float32)
    drawn = roc([(1, HeldOutScores(labels, scores))], "#000")
    assert 300 < len(drawn["data"][1]["x"]) <= 400
    assert drawn["data"][1]["x"][-1] == drawn["data"][1]["y"][-1] == 1
    assert roc([(1, HeldOutScores(labels * 0, scores))], "#000") is None
    assert roc([(1, HeldOutScores(labels, scores * np.nan))], "#000") is None


NASTY = 'a</script><b onload="x">&amp;\'é'


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    """A finished sweep with all that a report can show, and names that try to break the page."""
    root = tmp_path_factory.mktemp("sweep")
    write_sample_sweep(
        root,
        categories=("bottle", "screw & <i>nut</i>"),
        methods=("patchcore", "padim"),
        trials=8,
        confirm=1,
        seeds=(1, 11),
        domains=("fog", "<dark>"),
        pruner="median",
        fails=lambda record: f"broke: {NASTY}" if record.number in {2, 3} else None,
    )
    write_report(root)
    return root


class Structure(HTMLParser):
    """What a page consists of; complains of tags that are not closed as they were opened."""

    VOID = frozenset({"meta", "link", "img", "br"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict]] = []
        self.text: list[str] = []
        self.scripts: dict[str, str] = {}
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, (tag, self.open)

    def handle_data(self, data):
        if self.open and self.open[-1] == "script":
            self.scripts[self.tags[-1][1].get("id", f"script {len(self.scripts)}")] = data
        elif self.open and self.open[-1] != "style":
            self.text.append(data)

    def all(self, tag: str) -> list[dict]:
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())


def test_the_page_has_all_its_parts(sample):
    page = (sample / "report.html").read_text(encoding="utf-8")
    structure = Structure(page)
    sections = [section.get("id") for section in structure.all("section")]
    assert sections == [
        "verdict", "overview", "leaderboard", "categories", "agreement", "studies", "provenance",
    ]  # fmt: skip
    figures = json.loads(structure.scripts["figures"])
    places = [div["data-figure"] for div in structure.all("div") if "data-figure" in div]
    assert sorted(places) == sorted(figures)
    assert len(structure.all("option")) == 2 + 4
    assert len(structure.all("img")) == 2 * 5
    assert all(image["alt"] and image["src"].startswith("data:") for image in structure.all("img"))
    assert "NaN" not in structure.scripts["figures"]
    for part in ("false alarm", "Shifted domains", "sha256 of the sweep", "optuna "):
        assert part in structure.words
    assert "32 of 32 trials" in structure.words
    assert "2 failed trials" in structure.words


def test_the_page_asks_for_nothing_else_and_runs_no_script_but_its_own(sample):
    page = (sample / "report.html").read_text(encoding="utf-8")
    structure = Structure(page)
    for _, attributes in structure.tags:
        for name in ("src", "href"):
            assert re.match(r"data:|#|$", attributes.get(name) or ""), attributes
        assert not any(name.startswith("on") for name in attributes)
    policy = next(meta for meta in structure.all("meta") if "http-equiv" in meta)["content"]
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy.split("script-src")[1]
    assert len(structure.all("script")) == 3
    assert f"broke: {NASTY}" in structure.words
    assert "screw & <i>nut</i>" in structure.words
    figures = json.loads(structure.scripts["figures"])
    assert "<" not in structure.scripts["figures"]
    labels = json.dumps(figures)
    assert "screw &amp; &lt;i&gt;nut" in labels  # plotly reads tags
    assert "<i>" not in labels


def test_heat_map_and_leaderboard(sample):
    evidence = gather(*open_sweep(sample))
    validation, held_out = heat_maps(evidence)
    assert [name for name, _ in validation.rows] == ["bottle", "screw & <i>nut</i>"]
    for _, cells in (*validation.rows, *held_out.rows):
        assert sum(cell.best for cell in cells) == 1
        assert all(0 <= cell.level <= 1 for cell in cells)
    assert re.fullmatch(r"± 0\.\d{3}", validation.rows[0][1][0].note)
    assert re.fullmatch(r"0\.\d{3}-[01]\.\d{3}", held_out.rows[0][1][0].note)
    columns = {column.title: column for column in leaderboard([s.row for s in evidence.studies])}
    assert "held out" in columns
    assert [cell.key for cell in columns["rank"].cells] == [1, 2, 1, 2]


def page_of(root, **sweep) -> str:
    write_sample_sweep(root, **{"methods": ("patchcore",), "categories": ("bottle",)} | sweep)
    written = write_report(root)
    content = (root / "report.html").read_bytes()
    assert written.size == len(content)
    return Structure(content.decode()).words


def test_a_sweep_that_still_runs(tmp_path):
    words = page_of(tmp_path, trials=8, killed_after=12)
    assert "while the sweep is not finished" in words
    assert "of 8 trials done" in words
    assert "Nothing is confirmed" in words
    assert "confirm: 0" not in words


def test_a_sweep_that_has_just_begun(tmp_path):
    words = page_of(tmp_path, trials=8, killed_after=0, categories=("bottle", "screw"))
    assert "No method has a completed trial yet" in words
    assert "No trial has reached its first rung yet." in words


def test_a_sweep_that_only_fails(tmp_path):
    words = page_of(tmp_path, trials=4, pruner="none", fails=lambda record: "CUDA out of memory")
    assert "every one of the 4 trials failed" in words
    assert "trial 0 CUDA out of memory" in words


def test_no_confirm_runs_and_the_protocol_of_papers(tmp_path):
    assert "( confirm: 0 )" in page_of(tmp_path / "a", trials=4, confirm=0)
    words = page_of(tmp_path / "b", trials=4, validation={"protocol": "test"})
    assert "Every figure here is of the images that chose the config, and optimistic" in words
    assert "optimistic: validation = test" in words


def test_damaged_extras_do_not_stop_the_report(tmp_path):
    write_sample_sweep(tmp_path, methods=("patchcore",), categories=("bottle",), trials=3)
    for path in (tmp_path / "confirm").rglob("*"):
        if path.suffix in {".npz", ".png"}:
            path.write_bytes(path.read_bytes()[:40])
    words = Structure(render(gather(*open_sweep(tmp_path)))).words
    assert "What patchcore sees" not in words
    assert "held out" in words


def test_the_command(sample):
    from anomtune.cli.main import app

    result = CliRunner().invoke(app, ["report", str(sample)])
    assert result.exit_code == 0
    assert re.fullmatch(r".*/report\.html \(\d\.\d MB\)\n", result.output)
    with pytest.raises(SweepError, match=r"no sweep\.yaml"):
        write_report(sample / "trials")


def test_names_are_text_for_plotly():
    assert text("<b>&") == "&lt;b&gt;&amp;"


BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")


@pytest.fixture(scope="module")
def browser():
    if BROWSER is None or DRIVER is None:
        pytest.skip("no chromium with its driver here: apt-get install chromium chromium-driver")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.mark.parametrize(("width", "scheme"), [(390, "light"), (1280, "dark")])
def test_a_browser_shows_it(sample, browser, width, scheme):
    from selenium.webdriver.support.ui import Select, WebDriverWait

    def shown(panel: str) -> int:
        return browser.execute_script(
            "return document.querySelectorAll(`${arguments[0]} .plot .main-svg`).length", panel
        )

    def wait(condition) -> None:
        WebDriverWait(browser, 30).until(lambda _: condition())

    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        # So high that all of a panel is in view, and therefore drawn.
        {"width": width, "height": 12_000, "deviceScaleFactor": 1, "mobile": width < 500},
    )
    feature = {"name": "prefers-color-scheme", "value": scheme}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    browser.get((sample / "report.html").as_uri())
    places = browser.execute_script(
        "return document.querySelectorAll('.panel:not(.off) .plot, #agreement .plot').length"
    )
    assert places >= 10
    drawn = "return document.querySelectorAll('.plot[data-drawn] .main-svg').length > 0 &&" \
            "document.querySelectorAll('.plot[data-drawn]').length"  # fmt: skip
    wait(lambda: browser.execute_script(drawn) == places)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width

    assert shown("#study-3") == 0
    Select(browser.find_element("css selector", "[data-panels=study]")).select_by_index(3)
    wait(lambda: shown("#study-3") > 0)
    assert shown("#study-0") == 0  # let go

    heading = browser.find_element("css selector", ".sortable thead th:nth-child(3) button")
    cells = "document.querySelectorAll('.sortable td:nth-child(3)')"
    for order in (sorted, lambda names: sorted(names, reverse=True)):
        browser.execute_script("arguments[0].click()", heading)
        found = browser.execute_script(f"return [...{cells}].map(cell => cell.innerText)")
        assert found == order(found)

    browser.execute_script("document.querySelector('[data-shows=heat-1]').click()")
    assert browser.find_element("id", "heat-1").is_displayed()
    assert not browser.find_element("id", "heat-0").is_displayed()
    assert browser.get_log("browser") == []
