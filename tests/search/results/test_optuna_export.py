"""Studies as Optuna keeps them: true to the records, and exported any number of times."""

from __future__ import annotations

from datetime import UTC, datetime

import optuna
import pytest
from typer.testing import CliRunner

from anomtune.cli.main import app
from anomtune.errors import StorageError, SweepError
from anomtune.search.decide.scoring import read_studies
from anomtune.search.results.optuna_export import export_studies, rebuild_studies
from anomtune.search.store.directory import read_sweep, write_config
from anomtune.search.store.record_store import RecordStore
from anomtune.search.store.records import StudyKey, TrialRecord
from tests.search.sample_sweep import write_sample_sweep

pytestmark = pytest.mark.slow

KEY = StudyKey("bottle", "rd4ad")
NAME = "folder/bottle/rd4ad"
FAILED = 3


def write_sweep(root, **changes):
    settings = {"categories": ["bottle"], "methods": ["rd4ad"], "trials": 9, "confirm": 0}
    reason = lambda record: "out of memory" if record.number == FAILED else None  # noqa: E731
    return write_sample_sweep(root, fails=reason, **settings | changes)


@pytest.fixture
def sweep(tmp_path):
    write_sweep(tmp_path / "sweep")
    return tmp_path / "sweep"


@pytest.fixture
def url(tmp_path):
    return f"{tmp_path}/studies.log"


@pytest.fixture(params=["sqlite:///{}/studies.db", "{}/studies.log"])
def any_url(request, tmp_path):
    return request.param.format(tmp_path)


def trials_at(url: str) -> list[optuna.trial.FrozenTrial]:
    return optuna.load_study(study_name=NAME, storage=open_url(url)).trials


def open_url(url: str):
    journal = optuna.storages.journal
    return journal.JournalStorage(journal.JournalFileBackend(url)) if url[-4:] == ".log" else url


def contents(trials) -> list[tuple]:
    """Everything but the times, which differ between two writings of a sweep, and Optuna's ids."""
    return [(t.number, t.state, t.params, t.values, t.intermediate_values) for t in trials]


def test_trials_are_those_of_the_records(sweep):
    config, store = read_sweep(sweep)
    records = read_studies(store)
    study = rebuild_studies(config, records)[KEY]
    assert study.study_name == NAME
    assert {"COMPLETE", "PRUNED", "FAIL"} == {record.state for record in records[KEY]}
    assert len(study.trials) == len(records[KEY]) == 9
    for trial, record in zip(study.trials, records[KEY], strict=True):
        assert trial.number == record.number
        assert trial.state.name == record.state
        assert trial.params.items() <= record.params.items()
        assert trial.intermediate_values == {rung.step: rung.auroc for rung in record.curve}
        last = None if record.state == "FAIL" else record.curve[-1].auroc
        assert trial.value == last
        for time, text in (
            (trial.datetime_start, record.cost.started_at),
            (trial.datetime_complete, record.cost.finished_at),
        ):
            assert time.astimezone(UTC) == datetime.fromisoformat(text)
    assert study.trials[FAILED].user_attrs["error"] == "out of memory"
    facts = study.trials[0].user_attrs
    assert facts["parameters"] == records[KEY][0].facts.parameters
    assert facts["image_ms"] == records[KEY][0].cost.image_ms
    completed = [record.value for record in records[KEY] if record.value is not None]
    assert study.best_value == max(completed)


@pytest.mark.parametrize(
    "space",
    [
        {"lr": {"low": 6e-3, "high": 1e-2, "log": True}},
        {"backbone": {"choices": ["resnet18", "resnet34"]}},
        {"batch_size": {"low": 3, "high": 13, "step": 5}},
    ],
)
def test_trial_0_outside_a_users_space_is_shown_as_it_was(tmp_path, space):
    methods = {"rd4ad": {"space": space}}
    config = write_sweep(tmp_path, trials=4, methods=["rd4ad"], confirm=0)
    data = config.model_dump(mode="json") | {"methods": methods}
    config = type(config).model_validate(data)
    (name,) = space
    _, store = read_sweep(tmp_path)
    first = read_studies(store)[KEY][0]
    (trial,) = rebuild_studies(config, {KEY: [first]})[KEY].trials
    assert trial.state.name == "COMPLETE"
    assert trial.value == first.value
    assert trial.params[name] == first.params[name]


def test_exporting_twice_changes_nothing(sweep, any_url):
    export_studies(sweep, any_url)
    first = trials_at(any_url)
    assert export_studies(sweep, any_url) == 1
    assert trials_at(any_url) == first
    config, store = read_sweep(sweep)
    expected = rebuild_studies(config, read_studies(store))[KEY].trials
    assert contents(first) == contents(expected)
    assert [t.datetime_start for t in first] == [t.datetime_start for t in expected]
    assert [t.user_attrs for t in first] == [t.user_attrs for t in expected]


def test_a_running_sweep_is_brought_up_to_date(tmp_path, any_url):
    write_sweep(tmp_path / "early", killed_after=12)
    write_sweep(tmp_path / "late")
    export_studies(tmp_path / "early", any_url)
    early = {trial.state.name for trial in trials_at(any_url)}
    assert "RUNNING" in early
    export_studies(tmp_path / "late", any_url)
    assert "RUNNING" not in {trial.state.name for trial in trials_at(any_url)}
    config, store = read_sweep(tmp_path / "late")
    expected = rebuild_studies(config, read_studies(store))[KEY].trials
    assert contents(trials_at(any_url)) == contents(expected)


def test_more_trials_are_added_to_those_that_are_there(tmp_path, sweep, url):
    config, store = read_sweep(sweep)
    records = read_studies(store)[KEY]
    shorter = RecordStore(type(store.storage)(tmp_path / "shorter"))
    write_config(shorter.storage, config)
    for record in records[:5]:
        shorter.write(record)
    export_studies(tmp_path / "shorter", url)
    before = trials_at(url)
    export_studies(sweep, url)
    assert len(trials_at(url)) == 9
    assert trials_at(url)[:5] == before, "with Optuna's own ids: nobody's link breaks"


def test_a_deleted_record_is_a_waiting_trial(sweep, url):
    (sweep / "trials/bottle/rd4ad/00000.json").unlink()
    export_studies(sweep, url)
    states = [trial.state.name for trial in trials_at(url)]
    assert states[0] == "WAITING"
    assert len(states) == 9


def test_a_study_of_somebody_else_is_left_alone(tmp_path, sweep, url):
    theirs = optuna.create_study(study_name=NAME, storage=open_url(url))
    theirs.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=1)
    with pytest.raises(StorageError, match=f"{NAME} that is not an export"):
        export_studies(sweep, url)
    assert list(trials_at(url)[0].params) == ["x"]

    write_sweep(tmp_path / "other", name="other")
    optuna.delete_study(study_name=NAME, storage=open_url(url))
    export_studies(sweep, url)
    with pytest.raises(StorageError, match="of the sweep 'sample'"):
        export_studies(tmp_path / "other", url)


def test_what_a_killed_export_left_is_taken_over(sweep, url):
    optuna.create_study(study_name=NAME, storage=open_url(url))
    export_studies(sweep, url)
    assert len(trials_at(url)) == 9


def test_records_of_another_version_of_the_method_are_named(sweep, url):
    _, store = read_sweep(sweep)
    record = read_studies(store)[KEY][5]
    store.write(TrialRecord(**record.model_dump() | {"params": {**record.params, "lr": 7.0}}))
    with pytest.raises(SweepError, match="bottle/rd4ad: its trials do not fit"):
        export_studies(sweep, url)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("studies", "cannot be used"),
        ("sqlite:////nowhere/studies.db", "unable to open"),
        ("/nowhere/studies.log", "No such file"),
        ("nodatabase://host/x", "cannot be used"),
        ("oracle+cx_oracle://user:secret@host/x", r"^oracle\+cx_oracle://\*\*\*@host/x: .*driver"),
    ],
)
def test_a_bad_url_is_one_line(sweep, url, message):
    with pytest.raises(StorageError, match=message) as refusal:
        export_studies(sweep, url)
    assert "\n" not in str(refusal.value)


def test_a_file_that_is_something_else_is_one_line_and_left_alone(tmp_path, sweep):
    for name in ("notes.log", "lines.log"):
        file = tmp_path / name
        file.write_text('{"level": "info"}\n' if name == "lines.log" else "a line of a log\n")
        before = file.read_bytes()
        with pytest.raises(StorageError, match=f"{name}: cannot be used"):
            export_studies(sweep, str(file))
        assert file.read_bytes() == before


def test_a_read_only_database_is_one_line(tmp_path, sweep):
    export_studies(sweep, f"sqlite:///{tmp_path}/studies.db")
    (sweep / "trials/bottle/rd4ad/00008.json").unlink()
    url = f"sqlite:///file:{tmp_path}/studies.db?mode=ro&uri=true"
    with pytest.raises(StorageError, match="readonly database") as refusal:
        export_studies(sweep, url)
    assert "\n" not in str(refusal.value)


def test_the_command_does_not_print_a_password(monkeypatch, sweep):
    monkeypatch.setattr("anomtune.search.results.optuna_export.export_studies", lambda *_: 1)
    url = "postgresql://user:secret@host/studies"
    result = CliRunner().invoke(app, ["export", str(sweep), "--optuna", url])
    assert result.exit_code == 0
    assert "postgresql://***@host/studies" in result.output
    assert "secret" not in result.output
