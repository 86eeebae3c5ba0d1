"""Makes ``report.png``, the picture of a report: on the README and on the first page of the site.

Run it without an argument to do what ``docs/choose.md`` tells (it needs the battery welds in
../shared/data and MobileNetV2's weights, and takes a few minutes), or with the directory of a
finished sweep to take a picture of that one's report. Needs Chromium with its driver.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image
from selenium import webdriver
from selenium.webdriver.support.ui import WebDriverWait

from anomtune.search.report import write_report

HERE = Path(__file__).parent
WELDS = HERE.parents[2] / "shared/data/battery_weld"
WIDTH = 900
#: How many colours do for a page: it is a quarter of the size then.
COLOURS = 128


def sweep_welds(work: Path) -> Path:
    """Puts the welds into two folders, sweeps them, and returns the directory of the sweep."""
    for part, kind, folder in (
        ("train", "good", "good"),
        ("test", "good", "good"),
        ("test", "defective", "defective"),
    ):
        target = work / "welds" / folder
        target.mkdir(parents=True, exist_ok=True)
        for path in sorted((WELDS / part / kind).iterdir()):
            name = path.name if not (target / path.name).exists() else f"t_{path.name}"
            shutil.copy(path, target / name)
    for command in (
        "audit folder welds",
        "init welds --hours 0.1",
        "sweep welds.yaml --set concurrency=1",
    ):
        subprocess.run(  # noqa: S603
            [sys.executable, "-m", "anomtune", *command.split()], cwd=work, check=True
        )
    return work / "sweeps/welds"


def photograph(page: Path, target: Path) -> None:
    """Writes the top of a report, down to the end of its verdict."""
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or shutil.which("google-chrome") or ""
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"):
        options.add_argument(argument)
    driver = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
    try:
        view = {"width": WIDTH, "height": 1000, "deviceScaleFactor": 2, "mobile": False}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", view)
        driver.get(page.resolve().as_uri())
        second = "return document.querySelectorAll('h2')[1].getBoundingClientRect().top"
        WebDriverWait(driver, 30).until(lambda _: driver.execute_script(second) > 0)
        view["height"] = int(driver.execute_script(second)) - 30
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", view)
        driver.save_screenshot(str(target))
    finally:
        driver.quit()
    with Image.open(target) as picture:
        small = picture.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
    small.save(target, optimize=True)


def main() -> None:
    """Makes the picture."""
    with tempfile.TemporaryDirectory() as work:
        directory = Path(sys.argv[1]) if len(sys.argv) > 1 else sweep_welds(Path(work))
        write_report(directory)
        photograph(directory / "report.html", HERE / "report.png")
    print(f"{HERE / 'report.png'}: {(HERE / 'report.png').stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
