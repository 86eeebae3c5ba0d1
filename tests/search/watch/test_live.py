"""The page of a real sweep that runs, is killed with -9, resumed, and ends."""

from __future__ import annotations

import json
import time

import pytest
import yaml

from tests.driver import Driver
from tests.search.conftest import sweep_dict
from tests.search.watch.test_server import ask, serving

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.usefixtures("ray_session")]

#: Within so many seconds the page must show what lies in the directory.
FOLLOWS = 5.0


def shown(browser):
    """Returns the phase and the number of ended trials on the page."""
    return browser.execute_script(
        "const value = document.querySelector('.tile-value');"
        "return [document.getElementById('phase').textContent,"
        " value ? Number(value.textContent.split(' ')[0]) : 0]"
    )


def ended(directory):
    records = [json.loads(path.read_text()) for path in directory.glob("trials/*/*/0*.json")]
    return sum(record["state"] != "RUNNING" for record in records)


def wait_for(condition, seconds):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)


def test_running_killed_resumed_and_ended(tmp_path, toy_data, ray_address, browser):
    file, directory = tmp_path / "sweep.yaml", tmp_path / "sweep"
    methods = {"toy": {"fixed": {"seconds": 0.1}}}
    file.write_text(yaml.safe_dump(sweep_dict(toy_data, trials=5, methods=methods)))

    def start():
        return Driver("sweep", file, "--dir", directory, "--address", ray_address)

    driver = start()
    wait_for((directory / "owner.json").exists, 60)
    with serving(directory) as port:
        browser.get(f"http://127.0.0.1:{port}/")
        wait_for(lambda: ended(directory) >= 2, 90)
        there = ended(directory)
        wait_for(lambda: shown(browser)[1] >= there, FOLLOWS)
        assert shown(browser)[0] == "running"
        driver.kill()
        there = ended(directory)
        wait_for(lambda: shown(browser) == ["stopped", there], FOLLOWS)
        assert json.loads(ask(port, "/state.json")[2])["left"] is None
        driver = start()
        wait_for(lambda: ended(directory) > there, 90)
        there = ended(directory)
        wait_for(lambda: shown(browser)[1] >= there, FOLLOWS)
        assert driver.wait() == 0, driver.err
        wait_for(lambda: shown(browser) == ["finished", 10], FOLLOWS)
        assert browser.get_log("browser") == []
