"""How large the report of a large sweep is, and how soon it can be used.

15 categories x 8 methods x 200 trials, all confirmed with three seeds, then three of the categories
with as many trials and with ten times as many. Records are made up, as in ``scale.py``; confirm
runs have 60 held-out images and a sheet of examples. Chromium opens the page as a laptop would:
*painted* is its first contentful paint, *interactive* the end of the last task that kept it from
answering for 50 ms or more, both since navigation; *figure* is the time from scrolling to the first
figure until it is drawn.

Must hold: under 15 MB, and interactive within 3 s.

Run: python -m tests.benchmarks.report_page [--quick]
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from anomtune.search.decide.confirm import to_confirm
from anomtune.search.report import write_report
from anomtune.search.store.directory import write_config
from anomtune.search.store.record_store import RecordStore
from anomtune.search.store.records import StudyKey, TrialRecord
from anomtune.search.store.storage import Storage
from tests.benchmarks.scale import METHODS, sweep, write_records
from tests.search.sample_sweep import write_confirm_run

_LABELS = np.repeat([0, 1], 30).astype(np.int8)


def write_sweep(root: Path, *, categories: int, trials: int) -> int:
    """Writes the directory of a finished sweep; returns how many trials it has."""
    config = sweep(trials, categories)
    plain = {
        name: method.model_copy(update={"fixed": {}}) for name, method in config.methods.items()
    }
    config = config.model_copy(update={"methods": plain})
    names = config.dataset.categories or ()
    store = RecordStore(Storage(root))
    write_config(store.storage, config)
    count = write_records(config, root)
    store.write_test_counts(dict.fromkeys(names, (30, 30)))
    for name in names:
        store.write_labels(name, _LABELS)
    records: dict[StudyKey, list[TrialRecord]] = store.read_all()
    for index, (_, trials_of_study) in enumerate(sorted(records.items())):
        for number in to_confirm(trials_of_study, config.confirm):
            for seed in config.confirm.seeds:
                distance = 1.5 + 0.2 * (index % len(METHODS))
                write_confirm_run(store, _LABELS, trials_of_study[number], distance, seed, ())
    return count


def open_page(path: Path) -> dict[str, float] | None:
    """Returns what Chromium measures of a page, in milliseconds; ``None`` without Chromium."""
    browser, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if browser is None or driver is None:
        return None
    from selenium import webdriver
    from selenium.webdriver.support.ui import WebDriverWait

    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    chrome = webdriver.Chrome(options, webdriver.ChromeService(driver))
    try:
        chrome.set_window_size(1366, 768)
        script = (
            "window.busy = 0; new PerformanceObserver(list => {"
            " for (const {startTime, duration} of list.getEntries())"
            " window.busy = Math.max(window.busy, startTime + duration); })"
            ".observe({type: 'longtask', buffered: true});"
        )
        chrome.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": script})
        chrome.get(path.as_uri())
        time.sleep(6)
        found: dict[str, Any] = chrome.execute_script(
            "const [page] = performance.getEntriesByType('navigation');"
            "const paint = performance.getEntriesByName('first-contentful-paint')[0];"
            "return {painted: paint.startTime, loaded: page.loadEventEnd,"
            " interactive: Math.max(window.busy, page.domInteractive)}"
        )
        begin = time.perf_counter()
        chrome.execute_script(
            "document.querySelector('.plot').scrollIntoView({behavior: 'instant'})"
        )
        WebDriverWait(chrome, 30, 0.02).until(
            lambda _: chrome.execute_script("return document.querySelector('.plot .main-svg')")
        )
        return {**found, "figure": 1e3 * (time.perf_counter() - begin)}
    finally:
        chrome.quit()


def measure(categories: int, trials: int) -> None:
    """Prints the figures of one report."""
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        count = write_sweep(root, categories=categories, trials=trials)
        begin = time.perf_counter()
        written = write_report(root)
        seconds = time.perf_counter() - begin
        size = f"{count} trials: written in {seconds:.0f} s, {written.size / 1e6:.2f} MB"
        times = open_page(root / "report.html")
    shown = (
        "no Chromium here"
        if times is None
        else ", ".join(f"{name} {value / 1e3:.2f} s" for name, value in times.items())
    )
    print(f"{categories} categories x {len(METHODS)} methods x {trials} trials = {size}; {shown}")


def main() -> None:
    """Prints all figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a tenth of the trials")
    scale = 10 if parser.parse_args().quick else 1
    measure(15, 200 // scale)
    measure(3, 200 // scale)
    measure(3, 2000 // scale)


if __name__ == "__main__":
    main()
