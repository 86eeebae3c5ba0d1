"""A followed sweep as the page draws it: a JSON of bounded size, whatever the number of trials."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from anomtune.errors import one_line
from anomtune.search.decide.confirm import kept_seed
from anomtune.search.decide.progress import StudyProgress
from anomtune.search.results.colours import palette
from anomtune.search.results.columns import Standing
from anomtune.search.store.records import AnyRecord, ConfirmRecord, StudyKey, TrialRecord
from anomtune.search.watch.follow import Followed
from anomtune.search.watch.study import FollowedStudy

Json = dict[str, Any]

#: How many of each are shown at most.
RUNNING, FAILURES, REASONS, SHEETS, UNREADABLE = 40, 12, 8, 120, 3
#: Curves of all studies together, and of one.
_CURVES, _CURVES_OF_STUDY = 1200, 12
#: Letters of an error.
_ERROR = 300
#: Seconds below which an estimate is rounded to so many: it is no more precise, and the page is
#: sent anew for each other one.
_ROUNDED = ((120, 5), (3600, 60), (float("inf"), 300))

_WORDS = {
    "waiting": "Waiting for the sweep to begin. It reads its images first.",
    "reading": "Reading what the sweep has written so far.",
    "running": "Running.",
    "silent": "Whether its driver runs cannot be told from this machine.",
    "stopped": "Nobody runs it. The same anomtune sweep command goes on where it was.",
    "finished": "Finished: nothing is left to run.",
    "gone": "The directory is not there any more. Below is what it held last.",
}


def picture(state: Followed) -> Json:
    """Returns what the page shows. Times are seconds and milliseconds since 1970.

    Args:
        state: The sweep. Categories in which nothing has changed are not drawn again.
    """
    found: Json = {
        "place": state.location,
        "phase": state.phase,
        "words": _WORDS[state.phase],
        "trouble": None if state.trouble is None else one_line(state.trouble),
    }
    config = state.config
    if config is None:
        return found
    if state.phase not in {"gone", "reading"} and not any(s.trials for s in state.studies.values()):
        found["words"] += " No trial has begun yet."
    hours = config.budget.hours if config.budget else None
    lasts = [study.last for study in state.studies.values() if study.last]
    return found | {
        "name": config.name,
        "dataset": config.dataset.name,
        "protocol": config.validation.protocol,
        "rungs": config.rungs,
        "confirms": config.confirm.top > 0,
        "totals": _totals(state),
        "left": _rounded(state.left.seconds),
        "late": len(state.left.overdue),
        "last": _milliseconds(max(lasts, default=None)),
        "hours": None if hours is None else {"of": hours, "spent": round(state.spent.seconds)},
        "methods": [
            {"name": name, "colour": colour} for name, colour in palette(config.methods).items()
        ],
        "categories": [_category(state, name) for name in config.dataset.categories or ()],
        "running": _running(state),
        "failures": _failures(state),
        "sheets": [entry for entry, _ in sheets(state)],
        "unreadable": _unreadable(state),
    }


def signature(state: Followed) -> tuple[object, ...]:
    """Returns what changes whenever `picture` does, and costs next to nothing."""
    left = _rounded(state.left.seconds), state.left.overdue
    spent, news = round(state.spent.seconds), state.news.total()
    return id(state), news, state.phase, state.trouble, state.since, left, spent


def sheets(state: Followed) -> list[tuple[Json, ConfirmRecord]]:
    """Returns the pictures of confirmed detectors, the first of each category first.

    Each with the confirm run that it is of: its heat maps of held-out images.
    """
    if state.config is None:
        return []
    found: list[tuple[Json, ConfirmRecord]] = []
    for category in state.config.dataset.categories or ():
        for standing in state.standings.get(category, ()):
            if standing.winner is None:
                continue
            seed = kept_seed(state.config.confirm)
            runs = [run for run in standing.winner.runs if run.examples]
            runs.sort(key=lambda run: run.seed != seed)
            if not runs:
                continue
            run = runs[0]
            # A run that was done again has other pictures under the same path.
            identity = f"{run.path} {run.cost.finished_at}".encode()
            entry = {
                "id": hashlib.sha256(identity).hexdigest()[:24],
                "category": run.category,
                "method": run.method,
                "rank": standing.rank,
                "auroc": _figure(None if run.test is None else run.test.auroc),
                "examples": [
                    {"kind": one.kind, "defect": one.defect, "score": float(f"{one.score:.3g}")}
                    for one in run.examples
                ],
            }
            found.append((entry, run))
    return sorted(found, key=lambda item: item[0]["rank"])[:SHEETS]


def _totals(state: Followed) -> Json:
    studies = state.progress.values()
    names = ("ended", "target", "complete", "pruned", "failed")
    found: Json = {name: sum(getattr(study, name) for study in studies) for name in names}
    found["confirmed"] = sum(study.confirmed for study in studies)
    found["confirm_target"] = sum(study.confirm_target for study in studies)
    found["confirm_failed"] = sum(study.confirm_failed for study in studies)
    runs = [run for study in state.studies.values() for run in study.running.values()]
    found["running"] = sum(map(state.is_running, runs))
    found["interrupted"] = len(runs) - found["running"]
    return found


def _category(state: Followed, name: str) -> Json:
    assert state.config is not None
    known = state.news[name], state.phase, state.since
    before, found = state.drawn.get(name, (None, {}))
    if before == known:
        return found
    standings = state.standings.get(name, [])
    by_method = {standing.key.method: standing for standing in standings}
    share = max(2, min(_CURVES_OF_STUDY, _CURVES // max(1, len(state.studies))))
    found = {
        "name": name,
        "verdict": _verdict(standings),
        "studies": [
            _study(state, StudyKey(name, method), by_method.get(method), share)
            for method in state.config.methods
        ],
    }
    state.drawn[name] = known, found
    return found


def _study(state: Followed, key: StudyKey, standing: Standing | None, curves: int) -> Json:
    study, progress = state.studies[key], state.progress.get(key)
    progress = progress or StudyProgress(key, target=0)
    return {
        "done": [progress.complete, progress.pruned, progress.failed],
        "running": sum(
            state.is_running(run) and isinstance(run, TrialRecord) for run in study.running.values()
        ),
        "target": progress.target,
        "confirm": [progress.confirmed, progress.confirm_target, progress.confirm_failed],
        "seconds": [
            round(study.seconds[name]) for name in ("COMPLETE", "PRUNED", "FAIL", "CONFIRM")
        ],
        "paper": _figure(progress.default),
        "curves": _curves(state, study, curves),
        **_standing(standing),
    }


def _standing(standing: Standing | None) -> Json:
    """Returns what a study is ranked by, with its interval."""
    if standing is None or standing.last is None:
        return {"value": None}
    if (winner := standing.winner) is None:
        last = standing.last
        value, low, high = last.auroc, last.auroc_low, last.auroc_high
    else:
        interval = standing.confirmed_interval
        value = winner.val_auroc
        low, high = (None, None) if interval is None else (interval.low, interval.high)
    return {
        "value": _figure(value),
        "low": _figure(low),
        "high": _figure(high),
        "confirmed": winner is not None,
        "test": None if winner is None else _figure(winner.test_auroc),
        "rank": standing.rank,
        "tied": standing.tied,
        "gain": _figure(standing.gain),
    }


def _verdict(standings: Sequence[Standing]) -> Json:
    """Says who is first, and how sure that is, as the leaderboard has it."""
    known = [standing for standing in standings if standing.last is not None]
    if not known:
        return {"method": None, "kind": "plain", "words": "no result yet"}
    first, others = known[0], known[1:]
    tied = [one.key.method for one in others if one.tied]
    unknown = sum(one.tied is None for one in others)
    if tied:
        kind, words = "caution", f"cannot be told from {', '.join(tied)}"
    elif not others:
        kind, words = "plain", "no other method has a result" if len(standings) > 1 else ""
    elif unknown:
        kind, words = "plain", f"not compared with {unknown} other" + "s" * (unknown > 1)
    else:
        kind, words = "good", "told from every other method"
    return {"method": first.key.method, "kind": kind, "words": words}


def _curves(state: Followed, study: FollowedStudy, most: int) -> list[Json]:
    """Returns the curves of a study that matter most: its best, what runs, what ended last."""
    best = max((record.value for record in study.trials if record.value is not None), default=None)
    found = []
    for record in study.curves():
        if not record.curve:
            continue
        if record.state == "RUNNING":
            kind = "running" if state.is_running(record) else "recent"
        elif best is not None and record.value == best:
            kind, best = "best", None
        else:
            kind = "paper" if record.number == 0 else "recent"
        points = [[rung.step, _figure(rung.auroc)] for rung in record.curve]
        found.append({"n": record.number, "kind": kind, "points": points})
    order = ("best", "running", "paper", "recent")
    return sorted(found, key=lambda curve: order.index(curve["kind"]))[:most]


def _running(state: Followed) -> list[Json]:
    """Returns what runs, the longest first."""
    late = set(state.left.overdue)
    runs = [
        run
        for study in state.studies.values()
        for run in study.running.values()
        if state.is_running(run)
    ]
    runs.sort(key=lambda run: run.cost.started_at or "")
    return [_run(run, late=run.path in late) for run in runs[:RUNNING]]


def _run(record: AnyRecord, *, late: bool) -> Json:
    found: Json = {
        "category": record.category,
        "method": record.method,
        "number": record.number,
        "started": _milliseconds(record.cost.started_at),
        "late": late,
    }
    if isinstance(record, ConfirmRecord):
        return found | {"seed": record.seed}
    last = record.curve[-1] if record.curve else None
    return found | {
        "step": last.step if last else 0,
        "auroc": _figure(last.auroc if last else None),
    }


def _failures(state: Followed) -> Json:
    reasons: Counter[str] = Counter()
    for study in state.studies.values():
        reasons.update(study.reasons)
    latest: list[Json] = [
        {
            "category": study.key.category,
            "method": study.key.method,
            "number": failure.number,
            "seed": failure.seed,
            "at": _milliseconds(failure.at),
            "error": _short(failure.error),
        }
        for study in state.studies.values()
        for failure in study.failures
    ]
    latest.sort(key=lambda failure: -(failure["at"] or 0))
    return {
        "count": reasons.total(),
        "reasons": [[_short(reason), count] for reason, count in reasons.most_common(REASONS)],
        "latest": latest[:FAILURES],
    }


def _unreadable(state: Followed) -> Json:
    found = [why for study in state.studies.values() for why in study.unreadable.values()]
    return {"count": len(found), "first": [_short(why) for why in found[:UNREADABLE]]}


def _short(error: str) -> str:
    error = one_line(error)
    return error if len(error) <= _ERROR else f"{error[:_ERROR]}..."


def _figure(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def _rounded(seconds: float | None) -> int | None:
    if seconds is None:
        return None
    step = next(step for limit, step in _ROUNDED if seconds < limit)
    # Nothing is left at 0 alone.
    return 0 if seconds == 0 else max(step, step * round(seconds / step))


def _milliseconds(text: str | None) -> int | None:
    if text is None:
        return None
    return round(datetime.fromisoformat(text).astimezone(UTC).timestamp() * 1000)
