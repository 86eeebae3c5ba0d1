"""What the shell offers: the right names, at once."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

ANOMTUNE = (
    "import sys; sys.argv[0] = 'anomtune'; from anomtune.cli.main import main\n"
    "try: main()\n"
    "finally: print(*({'ray', 'torch', 'optuna', 'pyarrow'} & set(sys.modules)), file=sys.stderr)"
)


def complete(*words: str) -> tuple[list[str], str]:
    """Returns what bash is offered for the last word, and which heavy packages were imported."""
    line = " ".join(["anomtune", *words])
    environment = os.environ | {
        "_ANOMTUNE_COMPLETE": "complete_bash",
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(words)),
    }
    done = subprocess.run(
        [sys.executable, "-c", ANOMTUNE],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.split(), done.stderr.strip()


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    directory = tmp_path_factory.mktemp("sweep")
    for study in ("plate/padim", "plate/rd4ad", "ring/ssae"):
        (directory / "trials" / study).mkdir(parents=True)
    return str(directory)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("lead",), ["leaderboard"]),
        (("methods", "r"), ["rd4ad", "recontrast"]),
        (("audit", "mv"), ["mvtec", "mvtec_loco"]),
        (("audit", "mvtec", "--category", "ca"), ["cable", "capsule", "carpet"]),
        (("methods", "--dataset", "mvtec", "--category", "bo"), ["bottle"]),
        (("best", "SWEEP", "--category", ""), ["plate", "ring"]),
        (("best", "SWEEP", "--category", "plate", "--method", ""), ["padim", "rd4ad"]),
        (("leaderboard", "SWEEP", "--method", "s"), ["ssae"]),
        (("best", "s3://bucket/sweep", "--category", ""), []),
    ],
)
def test_names_are_offered_and_nothing_heavy_is_imported(sweep, words, expected):
    found, heavy = complete(*(sweep if word == "SWEEP" else word for word in words))
    assert found == expected
    assert heavy == ""


@pytest.mark.slow
def test_completion_is_quick_beside_python_itself():
    def best(call) -> float:
        taken = []
        for _ in range(3):
            begin = time.perf_counter()
            call()
            taken.append(time.perf_counter() - begin)
        return min(taken)

    python = best(lambda: subprocess.run([sys.executable, "-c", "import rich, typer"], check=True))
    # A ratio: on a quiet machine that is far below half a second.
    assert best(lambda: complete("methods", "r")) < 10 * python


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_every_shell_has_a_script(shell, monkeypatch, run):
    monkeypatch.setattr("shellingham.detect_shell", lambda: (shell, shell))
    code, out, _ = run("--show-completion")
    assert code == 0
    assert "ANOMTUNE_COMPLETE" in out
