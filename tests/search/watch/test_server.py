"""The server of the page: local, read only, and what a browser makes of it."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager

import pytest

from anomtune.search.watch import server
from tests.search.sample_sweep import write_sample_sweep

NASTY = 'a</script><b onload="x">&amp;\'é'


@contextmanager
def serving(directory):
    """Serves in a thread; yields the port."""
    ports: list[int] = []
    started = threading.Event()
    loop = asyncio.new_event_loop()

    def ready(port):
        ports.append(port)
        started.set()

    task = loop.create_task(server._serve(server.SweepFollower(directory), 0, ready))

    def run():
        with pytest.raises(asyncio.CancelledError):
            loop.run_until_complete(task)
        loop.close()

    thread = threading.Thread(target=run)
    thread.start()
    assert started.wait(30)
    try:
        yield ports[0]
    finally:
        loop.call_soon_threadsafe(task.cancel)
        thread.join()


def ask(port, path="/", method="GET", **headers):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    connection.request(
        method, path, headers={name.replace("_", "-"): v for name, v in headers.items()}
    )
    answer = connection.getresponse()
    return answer.status, answer.headers, answer.read()


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    root = tmp_path_factory.mktemp("sweep")
    write_sample_sweep(
        root,
        categories=("bottle", "screw & <i>nut</i>"),
        methods=("patchcore", "padim"),
        trials=6,
        confirm=1,
        seeds=(1, 11),
        fails=lambda record: f"broke: {NASTY}" if record.number == 2 else None,
    )
    return root


@pytest.fixture(scope="module")
def port(sample):
    with serving(sample) as port:
        for _ in range(200):
            if json.loads(ask(port, "/state.json")[2])["phase"] == "finished":
                break
            threading.Event().wait(0.05)
        yield port


def test_only_this_machine_may_ask(port):
    for host in ("127.0.0.1", "localhost", "localhost:1234", "[::1]:80", "127.0.0.1:99"):
        assert ask(port, Host=host)[0] == 200, host
    for host in ("evil.example", "evil.example:80", "127.0.0.1.evil.example", "", "10.0.0.1"):
        for path in ("/", "/state.json", "/sheets/x.png"):
            assert ask(port, path, Host=host)[0] == 403, host


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH"])
def test_it_is_read_only(port, method):
    for path in ("/", "/state.json", "/nothing"):
        status, headers, _ = ask(port, path, method)
        assert (status, headers["Allow"]) == (405, "GET")


def test_what_a_browser_may_do(port):
    for path, kind in (
        ("/", "text/html"),
        ("/watch.js", "text/javascript"),
        ("/figures.js", "text/javascript"),
        ("/watch.css", "text/css"),
        ("/report.css", "text/css"),
        ("/state.json", "application/json"),
        ("/nothing", "text/plain"),
    ):
        status, headers, content = ask(port, path)
        assert status == (404 if path == "/nothing" else 200)
        assert headers["Content-Type"].startswith(kind)
        policy = headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'")
        assert "unsafe" not in policy
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert "Access-Control-Allow-Origin" not in headers
        assert path == "/state.json" or b"onload" not in content


def test_the_state_is_sent_when_it_has_changed(port):
    status, headers, content = ask(port, "/state.json")
    assert json.loads(content)["totals"]["ended"] == 24
    status, again, nothing = ask(port, "/state.json", If_None_Match=headers["ETag"])
    assert (status, nothing, again["ETag"]) == (304, b"", headers["ETag"])
    _, packed, content = ask(port, "/state.json", Accept_Encoding="gzip")
    assert packed["Content-Encoding"] == "gzip"
    assert content[:2] == b"\x1f\x8b"


def test_pictures_are_those_of_the_state_and_no_other_file(port):
    state = json.loads(ask(port, "/state.json")[2])
    status, headers, content = ask(port, f"/sheets/{state['sheets'][0]['id']}.png")
    assert (status, headers["Content-Type"]) == (200, "image/png")
    assert content.startswith(b"\x89PNG")
    for path in (
        "/sheets/0.png",
        "/sheets/..%2f..%2fsweep.yaml.png",
        "/sweep.yaml",
        "/../sweep.yaml",
    ):
        assert ask(port, path)[0] == 404


def test_the_command(run, tmp_path, monkeypatch):
    code, _, errors = run("watch", tmp_path)
    assert code == 2
    assert "no sweep.yaml there" in errors
    code, _, errors = run("watch", tmp_path, "--port", "70000")
    assert code == 2
    assert "0 (any free one) to 65535" in errors

    def serve(directory, *, port, ready):
        ready(4321)
        raise KeyboardInterrupt

    opened = []
    monkeypatch.setattr("anomtune.search.watch.watch", serve)
    monkeypatch.setattr("webbrowser.open_new_tab", opened.append)
    monkeypatch.setenv("DISPLAY", ":0")
    code, out, _ = run("watch", tmp_path)
    assert code == 0
    assert "http://127.0.0.1:4321/" in out
    assert "ssh -L 4321:127.0.0.1:4321 " in out
    assert opened == ["http://127.0.0.1:4321/"]
    run("watch", tmp_path, "--no-browser")
    assert len(opened) == 1

    def nobody() -> str:
        raise KeyError("getpwuid(): uid not found: 12345")

    monkeypatch.setattr("getpass.getuser", nobody)
    assert "4321 USER@" in run("watch", tmp_path, "--no-browser")[1]


#: Opens the page as a browser does, and says what the process of the command then holds.
OPENING = """
import contextlib, json, os, sys, threading, time, urllib.request
from anomtune.cli.main import main

directory, port = sys.argv[1:]

def get(path):
    return urllib.request.urlopen(f"http://127.0.0.1:{port}/{path}").read()

def open_page():
    phase = "reading"
    while phase in {"reading", "waiting"}:
        time.sleep(0.1)
        with contextlib.suppress(OSError):
            state = json.loads(get("state.json"))
            phase = state["phase"]
    for name in ("", "report.css", "watch.js", f"sheets/{state['sheets'][0]['id']}.png"):
        get(name)
    held = [name for name in ("torch", "ray", "optuna", "plotly") if name in sys.modules]
    print(json.dumps([phase, state["totals"]["ended"], held]), file=sys.stderr, flush=True)
    os._exit(0)

threading.Thread(target=open_page).start()
sys.argv = ["anomtune", "watch", directory, "--no-browser", "--port", port]
main()
"""


def test_the_process_holds_no_torch(sample):
    """It may run for days beside a sweep that needs the memory."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-c", OPENING, sample, str(port)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    assert json.loads(done.stderr.splitlines()[-1]) == ["finished", 24, []]


def test_a_port_that_is_taken(run, sample, port):
    code, _, errors = run("watch", sample, "--port", port, "--no-browser")
    assert code == 2
    assert f"--port {port}" in errors


@pytest.mark.slow
@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (1366, "light"), (2560, "dark")])
def test_a_browser_shows_it(port, browser, width, scheme):
    from selenium.webdriver.support.ui import WebDriverWait

    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 9000, "deviceScaleFactor": 1, "mobile": width < 500},
    )
    feature = {"name": "prefers-color-scheme", "value": scheme}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    browser.get(f"http://127.0.0.1:{port}/")
    wait = WebDriverWait(browser, 30)
    wait.until(lambda b: b.execute_script("return 'ready' in document.body.dataset"))
    script = "return document.documentElement.scrollWidth"
    assert browser.execute_script(script) <= width
    words = browser.execute_script("return document.body.innerText")
    for part in ("finished", "screw & <i>nut</i>", f"broke: {NASTY}", "24 / 24", "missed"):
        assert part in words
    assert browser.execute_script("return document.querySelectorAll('.chart svg').length") == 2
    assert browser.execute_script("return document.querySelectorAll('[onload]').length") == 0
    loaded = "return [...document.images].filter((i) => !i.closest('details') && i.naturalWidth)"
    wait.until(lambda b: len(b.execute_script(loaded)) == 2)
    assert browser.get_log("browser") == []
