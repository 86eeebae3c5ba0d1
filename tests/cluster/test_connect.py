"""Who is let in, who is refused, and what is never said."""

from __future__ import annotations

import os

import pytest

from anomtune.cluster.connect import asks_for_token, connect, dashboard_url, is_loopback
from anomtune.errors import SweepError

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://localhost:8265", True),
        ("http://127.0.0.1:8265", True),
        ("http://127.9.9.9", True),
        ("http://[::1]:8265", True),
        ("https://head:8265", False),
        ("http://10.0.0.1:8265", False),
        ("http://0.0.0.0:8265", False),
        ("http://localhost.example.com:8265", False),
    ],
)
def test_only_this_machine_is_loopback(url, expected):
    assert is_loopback(url) is expected


@pytest.mark.parametrize("address", ["head:8265", "ray://head:10001", "http://", "http://h:x", ""])
def test_what_is_no_dashboard_is_refused(address):
    with pytest.raises(SweepError, match="give the URL of the cluster's dashboard"):
        dashboard_url(address)


def test_a_password_in_the_address_is_refused_and_not_repeated():
    with pytest.raises(SweepError) as refusal:
        dashboard_url("http://me:geheim@head:8265")
    assert "geheim" not in str(refusal.value)


@pytest.mark.parametrize(("mode", "expected"), [("token", True), ("disabled", False)])
def test_the_mode_is_read_without_a_token(dashboard, mode, expected):
    with dashboard(mode) as (port, seen):
        assert asks_for_token(f"http://127.0.0.1:{port}") is expected
    assert seen == ["/api/authentication_mode"]


def test_a_ray_that_knows_no_tokens_asks_for_none(dashboard):
    with dashboard("older") as (port, _):
        assert not asks_for_token(f"http://127.0.0.1:{port}")


def test_something_else_behind_the_port_is_not_taken_for_ray(dashboard):
    with (
        dashboard("other") as (port, _),
        pytest.raises(SweepError, match="no Ray dashboard answers there"),
    ):
        asks_for_token(f"http://127.0.0.1:{port}")


def test_nothing_there_is_one_line(run):
    code, _, err = run("jobs", "--address", "http://127.0.0.1:9")
    assert code == 2
    assert "no Ray dashboard answers there" in err
    assert len(err.splitlines()) == 1


# 0.0.0.0 leads to this machine, but is no loopback address: it stands for a remote one.


@pytest.mark.parametrize("mode", ["disabled", "older"])
def test_an_open_dashboard_elsewhere_is_refused_before_anything_is_sent(
    dashboard, run, tmp_path, mode
):
    sweep = tmp_path / "sweep.yaml"
    sweep.write_text("{name: a, dataset: {name: synthetic}, methods: {toy: {}}}")
    with dashboard(mode) as (port, seen):
        address = f"http://0.0.0.0:{port}"
        code, _, err = run("submit", sweep, "--address", address, "--dir", "/shared/a")
        assert code == 2
        assert "lets everybody in who reaches it" in err
        assert "RAY_AUTH_MODE=token" in err
        assert set(seen) <= {"/api/authentication_mode", "/api/version"}
        code, _, _ = run("jobs", "--address", address, "--allow-unauthenticated")
        assert code == 0


def test_an_open_dashboard_here_is_used(dashboard, run):
    with dashboard("disabled") as (port, _):
        assert run("jobs", "--address", f"http://localhost:{port}")[0] == 0


def test_without_a_token_it_says_where_one_belongs(dashboard):
    with dashboard("token") as (port, seen):
        with pytest.raises(SweepError, match="asks for a token; put"):
            connect(f"http://127.0.0.1:{port}")
        assert seen == ["/api/authentication_mode"]


@pytest.mark.parametrize("source", ["variable", "named file", "default file"])
def test_the_token_is_found_where_ray_looks_for_it(dashboard, monkeypatch, tmp_path, source):
    if source == "variable":
        monkeypatch.setenv("RAY_AUTH_TOKEN", "right")
    elif source == "named file":
        (tmp_path / "token").write_text("right\n")
        monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    else:
        path = tmp_path / "home/.ray/auth_token"
        path.parent.mkdir(parents=True)
        path.write_text("right")
    with dashboard("token") as (port, _):
        assert connect(f"http://127.0.0.1:{port}").list_jobs() == []


def test_a_wrong_token_is_refused_and_not_shown(dashboard, monkeypatch, caplog, capfd):
    monkeypatch.setenv("RAY_AUTH_TOKEN", "geheim-4711")
    with dashboard("token") as (port, _), pytest.raises(SweepError) as refusal:
        connect(f"http://127.0.0.1:{port}")
    assert "refuses the token" in str(refusal.value)
    shown = str(refusal.value) + caplog.text + "".join(capfd.readouterr())
    assert "geheim-4711" not in shown


def test_a_named_file_that_is_not_there_is_an_error(dashboard, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "/no/such/file")
    with (
        dashboard("token") as (port, _),
        pytest.raises(SweepError, match="RAY_AUTH_TOKEN_PATH: cannot read"),
    ):
        connect(f"http://127.0.0.1:{port}")


def test_variables_of_ray_do_not_lead_to_another_cluster(dashboard, monkeypatch):
    """Ray's client would follow them, past the check of the address that was given."""
    monkeypatch.setenv("RAY_ADDRESS", "http://elsewhere:1")
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://elsewhere:1")
    with dashboard("disabled") as (port, _):
        client = connect(f"http://127.0.0.1:{port}")
    assert client.get_address() == f"http://127.0.0.1:{port}"
    assert os.environ["RAY_ADDRESS"] == "http://elsewhere:1"
