"""Loggers by name and import path: how they are made, and what nobody gets to see."""

from __future__ import annotations

import pytest
import yaml

from anomtune.errors import SweepError
from anomtune.registry import LOGGERS
from anomtune.search.config import check_extends, parse_sweep
from anomtune.search.results.logger import Logger, logger_makers
from tests.search.conftest import sweep_dict


class Kept(Logger):
    """Keeps what it is made with."""

    def __init__(self, sweep, token=None, where=None, **more):
        self.given = (sweep.name, token, where, more)
        if more.get("broken"):
            raise ConnectionError(f"https://me:pass@host/log?token=abcdef&x=1 refused {token}")

    def update(self, record):
        """Takes nothing."""


def plain(directory: str) -> Logger:
    """Returns a logger; it has no options."""
    return Kept(sweep=type("Named", (), {"name": directory}))


def demanding(place):
    """Wants an option."""


def nothing():
    """Returns no logger."""


HERE = "tests.search.results.test_logger"


def makers(*loggers, environment=None):
    config = parse_sweep(sweep_dict(loggers=list(loggers)), "test")
    return logger_makers(config, "/sweeps/toys", "id", environment or {})


def test_what_is_built_in():
    assert "mlflow" in LOGGERS.names()


def test_a_factory_is_given_its_options_and_what_it_names():
    options = {"where": "here", "retries": 3, "labels": ["a", "b"]}
    made = [
        maker.make()
        for maker in makers(f"{HERE}:plain", {"name": f"{HERE}:Kept", "options": options})
    ]
    assert made[0].given == ("/sweeps/toys", None, None, {})
    assert made[1].given == ("toys", None, "here", {"retries": 3, "labels": ["a", "b"]})


@pytest.mark.parametrize(
    ("logger", "message"),
    [
        ("mlfow", r"loggers\.0: no logger 'mlfow'; there is mlflow; did you mean 'mlflow'"),
        ("no_lab:make", r"loggers\.0: logger 'no_lab:make' .*ModuleNotFoundError"),
        ("pathlib:Path", "it is no subclass of anomtune.Logger"),
        (f"{HERE}:HERE", "it cannot be called"),
        ({"name": f"{HERE}:plain", "options": {"dir": 1}}, "has no option 'dir'; there is none"),
        ({"name": f"{HERE}:plain", "options": {"directory": 1}}, "has no option 'directory'"),
        (f"{HERE}:demanding", "missing a required argument: 'place'; set it in its options"),
        ({"name": f"{HERE}:Kept", "options": {"token": "$LAB_TOKEN"}}, "no variable LAB_TOKEN"),
        ({"name": f"{HERE}:Kept", "option": {}}, r"loggers\.0\.option: unknown key"),
        ({"options": {}}, r"loggers\.0\.name: missing"),
        ({"name": f"{HERE}:Kept", "options": {"token": "abc"}}, "token looks like a secret.*NAME"),
        (
            {"name": f"{HERE}:Kept", "options": {"a": {"api_key": 12}}},
            "api_key looks like a secret",
        ),
        (
            {"name": f"{HERE}:Kept", "options": {"where": "https://me:hunter2@host/x"}},
            r"where: https://\*\*\*@host/x carries credentials",
        ),
        (
            {"name": f"{HERE}:Kept", "options": {"where": ["https://host/x?token=hunter2"]}},
            r"where: https://host/x\?token=\*\*\* carries credentials",
        ),
    ],
)
def test_what_cannot_be_used_is_one_line(logger, message):
    with pytest.raises(SweepError, match=message) as refusal:
        makers(logger)
    assert "\n" not in str(refusal.value)
    assert "hunter2" not in str(refusal.value)


def test_a_factory_that_makes_something_else_is_named():
    (maker,) = makers(f"{HERE}:nothing")
    with pytest.raises(SweepError, match=r"makes a NoneType, not an anomtune\.Logger"):
        maker.make()


def test_a_secret_is_read_when_it_is_needed_and_shown_nowhere():
    options = {"token": "$LAB_TOKEN", "where": "https://host/x", "broken": True}
    data = sweep_dict(loggers=[{"name": f"{HERE}:Kept", "options": options}])
    config = parse_sweep(data, "test")
    environment = {"LAB_TOKEN": "hunter2", "MY_PASSWORD": "swordfish", "HOME": "/root"}
    (maker,) = logger_makers(config, "/sweeps/toys", "id", environment)
    with pytest.raises(ConnectionError) as caught:
        maker.make()
    shown = maker.shown(caught.value)
    assert shown == "ConnectionError: https://***@host/log?token=***&x=1 refused ***"
    assert maker.shown(OSError("swordfish at\n/root")) == "OSError: *** at /root"
    for text in (config.to_yaml(), repr(maker), repr(config)):
        assert "hunter2" not in text


def test_a_sweep_file_that_was_resolved_says_the_same():
    config = parse_sweep(sweep_dict(loggers=["mlflow", f"{HERE}:plain"]), "test")
    again = parse_sweep(yaml.safe_load(config.to_yaml()), "test")
    assert again == config
    assert [logger.name for logger in again.loggers] == ["mlflow", f"{HERE}:plain"]


def test_loggers_may_change_from_start_to_start():
    before, after = (parse_sweep(sweep_dict(loggers=names), "x") for names in ([], ["mlflow"]))
    check_extends(before, after, "here")
    check_extends(after, before, "here")
