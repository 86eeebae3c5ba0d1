"""A running sweep in optuna-dashboard: exported again and again until it is complete."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from anomtune.errors import StorageError
from anomtune.search.decide.scoring import read_studies
from anomtune.search.results.optuna_export import StudyWriter, content, rebuild_studies
from anomtune.search.results.status import sweep_status
from anomtune.search.store.directory import read_sweep
from anomtune.search.store.records import StudyKey

#: Of its time, a follower reads and writes this share at most: a sweep of thousands of trials in an
#: object store takes a while to read.
_BUSY = 0.1


@dataclass(frozen=True)
class Followed:
    """What an export of a running sweep has found.

    Attributes:
        studies: How many studies have begun.
        trials: How many trials.
        running: Those of them that run.
    """

    studies: int
    trials: int
    running: int


def follow_studies(
    directory: str | os.PathLike[str],
    url: str,
    *,
    every: float = 5.0,
    tell: Callable[[Followed | StorageError], object] = lambda what: None,
    sleep: Callable[[float], object] = time.sleep,
) -> Followed:
    """Keeps the studies of a sweep up to date where optuna-dashboard looks, until it is complete.

    Trials are added when they begin and ended where they are, so that pages stay open. A study is
    written anew, under the same name, when its trials are read with another scoring than before,
    which happens mostly early on. In the end all is as `export_studies` writes it, and so it is at
    the beginning, whatever a follower that was killed has left.

    Args:
        directory: The sweep directory, local or remote. The sweep may run elsewhere, or later.
        url: As `export_studies` takes it.
        every: Seconds between two looks, at least.
        tell: Is told of each look that has found something new, and of a storage that fails
            meanwhile, once until it works again.
        sleep: Waits for so many seconds.

    Returns:
        What there is in the end.

    Raises:
        SweepError: If there is no such sweep.
        StorageError: If directory or URL cannot be used at the beginning.
    """
    writer: StudyWriter | None = None
    written: dict[StudyKey, list[tuple[Any, ...]]] = {}
    told: Followed | None = None
    failed = False
    while True:
        began = time.monotonic()
        try:
            config, store = read_sweep(directory)
            # Asked first: what is complete does not change any more.
            status = sweep_status(config, store, datetime.now(UTC))
            complete = all(study.owed == 0 for study in status.studies)
            rebuilt = rebuild_studies(config, read_studies(store))
            now = {key: [*map(content, s.get_trials(deepcopy=False))] for key, s in rebuilt.items()}
            writer = writer or StudyWriter(url)
            news = [
                study for key, study in rebuilt.items() if complete or written.get(key) != now[key]
            ]
            writer.write(news, live=bool(written) and not complete)
        except StorageError as error:
            if told is None:
                raise
            if not failed:
                tell(error)
            failed = True
        else:
            written, failed = now, False
            states = [trial[0].name for trials in now.values() for trial in trials]
            found = Followed(len(now), len(states), states.count("RUNNING"))
            if news and found != told:
                tell(found)
            told = found
            if complete:
                return found
        sleep(max(every, (time.monotonic() - began) / _BUSY))
