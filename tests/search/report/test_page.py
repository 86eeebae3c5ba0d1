"""The page of the report: what stands on it, and that a browser shows it."""

from __future__ import annotations

import base64
import gzip
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from typer.testing import CliRunner

from anomtune.errors import SweepError
from anomtune.search.report import write_report
from anomtune.search.report.evidence import gather
from anomtune.search.report.overview import heat_maps, leaderboard
from anomtune.search.report.page import render
from anomtune.search.store.directory import read_sweeps
from tests.search.sample_sweep import write_sample_sweep

pytestmark = pytest.mark.slow

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

    VOID = frozenset({"meta", "link", "img", "br", "input"})

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
    def figures(self) -> list[str]:
        """The JSON of each figure, unpacked."""
        return gzip.decompress(base64.b64decode(self.scripts["figures"])).decode().split("\n")

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())


def test_the_page_has_all_its_parts(sample):
    page = (sample / "report.html").read_text(encoding="utf-8")
    structure = Structure(page)
    sections = [section.get("id") for section in structure.all("section")]
    assert sections == [
        "verdict", "gain", "overview", "leaderboard", "categories", "agreement", "studies",
        "provenance",
    ]  # fmt: skip
    figures = [f"f{index}" for index, _ in enumerate(structure.figures)]
    places = [div["data-figure"] for div in structure.all("div") if "data-figure" in div]
    assert sorted(places) == sorted(figures)
    assert len(structure.all("option")) == 2 + 4
    assert len(structure.all("img")) == 2 * 5
    assert all(image["alt"] and image["src"].startswith("data:") for image in structure.all("img"))
    assert all(json.loads(figure)["data"] for figure in structure.figures)
    assert "NaN" not in "".join(structure.figures)
    for part in (
        "false alarm",
        "Cost of a wrong choice",
        "crack & <u>chip</u>",
        "+500",
        "Shifted domains",
        "sha256 of the sweep",
        "optuna ",
    ):
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
    # Two hold packed text, one is the page's own.
    assert [script.get("type") for script in structure.all("script")] == ["text/plain"] * 2 + [None]
    assert f"broke: {NASTY}" in structure.words
    assert "screw & <i>nut</i>" in structure.words
    labels = "".join(structure.figures)
    assert "screw &amp; &lt;i&gt;nut" in labels  # plotly reads tags
    assert "<i>" not in labels


def test_heat_map_and_leaderboard(sample):
    evidence = gather(*read_sweeps([sample]))
    validation, held_out = heat_maps(evidence)
    assert [name for name, _ in validation.rows] == ["bottle", "screw & <i>nut</i>"]
    for _, cells in (*validation.rows, *held_out.rows):
        assert sum(cell.best for cell in cells) == 1
        assert all(0 <= cell.level <= 1 for cell in cells)
    # Both are of the mean over the seeds: the figure that is shown lies within.
    for heat_map in (validation, held_out):
        for cell in heat_map.rows[0][1]:
            low, high = map(float, re.fullmatch(r"(0\.\d{3})-([01]\.\d{3})", cell.note).groups())
            assert low < float(cell.value) < high
    columns = {column.title: column for column in leaderboard(evidence)}
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
    words = Structure(render(gather(*read_sweeps([tmp_path])))).words
    assert "What patchcore sees" not in words
    assert "held out" in words


def test_the_command(sample):
    from anomtune.cli.main import app

    result = CliRunner().invoke(app, ["report", str(sample)])
    assert result.exit_code == 0
    assert re.fullmatch(r".*/report\.html \(\d\.\d MB\)\n", result.output)
    with pytest.raises(SweepError, match=r"no sweep\.yaml"):
        write_report(sample / "trials")


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
        {"width": width, "height": 24_000, "deviceScaleFactor": 1, "mobile": width < 500},
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


def test_a_threshold_is_moved_by_keys_and_by_cost(sample, browser):
    from selenium.webdriver.common.keys import Keys

    category = gather(*read_sweeps([sample])).categories[0]
    scores, bad = category.kept.scores, category.kept.labels == 1

    def wrong(threshold: float) -> tuple[int, int]:
        return int((scores[bad] < threshold).sum()), int((scores[~bad] >= threshold).sum())

    browser.get((sample / "report.html").as_uri())
    box = browser.find_element("css selector", "#category-0 .slider")
    slider, ratio, rate, back = (
        box.find_element("css selector", name)
        for name in ("[type=range]", ".ratio", ".rate", ".back")
    )

    def shown() -> tuple[int, int]:
        words = box.find_element("css selector", ".counts").text
        pattern = r"misses (\d+) of 30 defects, false alarms (\d+) of 30 good"
        return tuple(map(int, re.match(pattern, words).groups()))

    assert shown() == wrong(category.kept.threshold)
    assert "chosen on validation" in box.find_element("css selector", ".value").text
    for key, threshold in ((Keys.HOME, -np.inf), (Keys.END, np.inf)):
        slider.send_keys(key)
        assert shown() == wrong(threshold)
    slider.send_keys(Keys.LEFT)
    assert shown() == (29, 0) != wrong(np.inf)
    assert "misses 29 of 30" in slider.get_attribute("aria-valuetext")

    # A missed defect costs as much as 50 false alarms, and 2 % of the parts are defective.
    ratio.send_keys("50")
    rate.send_keys("2")
    levels = [-np.inf, *np.unique(scores) + 1e-7]
    counts = {wrong(level) for level in levels}
    costs = {(missed, alarms): 50 * 0.02 * missed + 0.98 * alarms for missed, alarms in counts}
    assert costs[shown()] == min(costs.values())
    assert "optimistic" in box.find_element("css selector", ".best").text
    ratio.clear()
    ratio.send_keys("0")
    assert shown()[1] == 0
    browser.execute_script("arguments[0].click()", back)
    assert shown() == wrong(category.kept.threshold)
    assert browser.get_log("browser") == []


def test_paper_shows_every_category_and_no_switches(sample, browser):
    browser.get((sample / "report.html").as_uri())
    ready = "return document.getElementById('figures') === null"
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(browser, 30).until(lambda _: browser.execute_script(ready))
    # Twice: what is drawn for paper must go back to the screen.
    for _ in range(2):
        content = browser.execute_cdp_cmd("Page.printToPDF", {"printBackground": False})["data"]
        assert len(base64.b64decode(content)) > 50_000
        assert browser.execute_script("return document.documentElement.className") == ""
    assert not browser.find_element("id", "category-1").is_displayed()
    browser.execute_script("dispatchEvent(new Event('beforeprint'))")
    drawn = "return document.querySelectorAll('#category-1 .main-svg').length"
    assert browser.execute_script(drawn) > 0
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print", "features": []})
    hidden = browser.execute_script(
        "return [...document.querySelectorAll('nav, .slider, .choose, .switch')]"
        ".every(part => part.offsetParent === null)"
    )
    wide = "return document.querySelector('main').scrollWidth <= 680"
    assert hidden
    assert browser.execute_script(wide)
    assert browser.get_log("browser") == []
