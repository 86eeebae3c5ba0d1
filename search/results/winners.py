"""The detectors that a sweep leaves: one per study, that of the config which won.

Of every confirmed config the run with the first seed leaves its detector beside its record. When
nothing of the study is left to confirm, the winner's goes to ``models/`` and the others go away:
weights are what fills a disk.
"""

from __future__ import annotations

from collections.abc import Sequence

from anomtune.search.config import ConfirmConfig
from anomtune.search.decide.confirm import choose, kept_seed
from anomtune.search.detector.saved import SavedConfig, read_saved_config
from anomtune.search.store.records import ConfirmRecord, StudyKey, TrialRecord
from anomtune.search.store.storage import Storage


def model_folder(key: StudyKey) -> str:
    """Returns where the detector of a study's winner lies below the sweep directory."""
    return f"models/{key}"


def publish_winner(
    storage: Storage,
    key: StudyKey,
    records: Sequence[TrialRecord],
    runs: Sequence[ConfirmRecord],
    config: ConfirmConfig,
) -> None:
    """Moves the winner's detector to its place and deletes the others'.

    May be killed and called again; does nothing where it has been called before.

    Args:
        storage: The sweep directory.
        key: A study with nothing left to confirm.
        records: Its trials.
        runs: Its confirm runs.
        config: Which seeds there are.
    """
    _, winner = choose(records, runs, config)
    if winner is None:
        return
    target = model_folder(key)
    for run in winner.runs:
        if run.seed == kept_seed(config):
            storage.move_folder(run.path, target)
            # More trials can make a config win whose detector was not kept: better none than
            # another's. `anomtune train` makes it.
            if not _is_of(read_saved_config(storage, target), run):
                storage.delete_folder(target)
    for run in runs:
        storage.delete_folder(run.path)


def kept_config(storage: Storage, run: ConfirmRecord) -> SavedConfig | None:
    """Returns what the detector of a confirm run says of itself, ``None`` if it is not there.

    Args:
        storage: The sweep directory.
        run: A run with the seed whose detectors are kept.
    """
    for folder in (model_folder(run.key), run.path):
        saved = read_saved_config(storage, folder)
        if _is_of(saved, run):
            return saved
    return None


def _is_of(saved: SavedConfig | None, run: ConfirmRecord) -> bool:
    return (
        saved is not None
        and saved.hyperparameters == run.params
        and saved.seed == run.seed
        and saved.split_hash == run.split_hash
    )
