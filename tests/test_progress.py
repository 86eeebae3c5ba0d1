"""Long steps tell how far they are, to whoever listens."""

from __future__ import annotations

import pytest

from anomtune.progress import listening, step, steps, tell


def test_steps_are_told_one_by_one_and_end() -> None:
    told: list[tuple[str, int, int | None]] = []
    with listening(lambda *what: told.append(what)):
        assert list(steps(iter("ab"), "reading", 2)) == ["a", "b"]
        with step("exporting"):
            tell("inside", 0)
    assert told == [
        *(("reading", done, 2) for done in (0, 1, 2)),
        *(("exporting", 0, None), ("inside", 0, None), ("exporting", 1, 1)),
    ]


def test_a_step_that_is_given_up_is_over_too() -> None:
    told: list[int] = []
    with listening(lambda what, done, total: told.append(done)):
        with pytest.raises(ZeroDivisionError), step("failing"):
            raise ZeroDivisionError
        for _ in steps("abc", "some are left out", 5):
            pass
    assert told == [0, 1, 0, 1, 2, 3, 5]


def test_nobody_listens_behind_the_block() -> None:
    told: list[str] = []
    with listening(lambda what, *_: told.append(what)):
        pass
    tell("unheard", 0)
    assert list(steps("ab", "unheard", 2)) == ["a", "b"]
    assert told == []
