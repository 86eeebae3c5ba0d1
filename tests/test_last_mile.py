"""A detector where the line's PC is: few packages, and nothing that POSIX alone has."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, distribution, packages_distributions
from pathlib import Path, PurePosixPath, PureWindowsPath

import pytest

from anomtune.names import leaves
from anomtune.search.detector.predictions import common_folder, names_below
from anomtune.search.detector.train import train
from tests.conftest import PROJECT
from tests.search.toy_models import toy_config


def short_list() -> list[str]:
    """Returns the lines of the small install as the documentation has them."""
    page = (PROJECT / "docs/deploy.md").read_text("utf-8")
    found = re.search(r"```text\n(torch>=.*?)```", page, re.DOTALL)
    assert found is not None
    return found[1].split()


def test_the_short_list_asks_for_what_the_project_asks_for() -> None:
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text("utf-8"))["project"]
    assert set(short_list()) <= set(project["dependencies"])


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def installed_by(requirements: list[str]) -> set[str]:
    """Returns the names of the distributions that requirements bring along, themselves included."""
    found: set[str] = set()
    waiting = [*requirements]
    while waiting:
        line = waiting.pop()
        name = canonical(re.split(r"[^A-Za-z0-9._-]", line)[0])
        if name in found or "extra ==" in line:
            continue
        try:
            waiting += distribution(name).requires or ()
        except PackageNotFoundError:  # for another system
            continue
        found.add(name)
    return found


def refused_modules() -> list[str]:
    """Returns the modules of all packages that are installed here and not by the short list."""
    known = installed_by(short_list()) | {"anomtune", "setuptools", "pip"}
    assert not known & {"ray", "optuna", "plotly", "tensorboard", "pyarrow", "scipy", "sqlalchemy"}
    return sorted(
        module
        for module, owners in packages_distributions().items()
        if not known & set(map(canonical, owners))
    )


#: A process in which packages are as if they were not installed.
WITHOUT = """
import sys
REFUSED = {refused!r}
from importlib.machinery import PathFinder
find = PathFinder.find_spec
def find_others(name, path=None, target=None):
    return None if name.partition(".")[0] in REFUSED else find(name, path, target)
PathFinder.find_spec = find_others
from anomtune.cli.main import main
def anomtune(*arguments):
    sys.argv = ["anomtune", *arguments]
    try:
        main()
    except SystemExit as end:
        return end.code or 0
    return 0
"""


def python(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        timeout=300,
    )


@pytest.fixture(scope="module")
def model(tmp_path_factory, toy_data) -> Path:
    """A saved detector on a network of torchvision's."""
    settings = {"backbone": "mobilenet_v2", "weights": "random"}
    config = toy_config(toy_data) | {"method": "padim", "hyperparameters": settings}
    folder = tmp_path_factory.mktemp("models") / "plate"
    train(config, device="cpu").save(folder)
    return folder


@pytest.mark.slow
def test_a_detector_is_used_with_the_short_list_alone(model, toy_data, tmp_path) -> None:
    refused = refused_modules()
    assert {"ray", "optuna", "plotly", "tensorboard", "pyarrow", "scipy"} <= set(refused)
    assert {"sqlalchemy", "aiohttp", "cmaes", "imagehash"} <= set(refused)
    code = WITHOUT.format(refused=refused) + (
        "model, images, out = sys.argv[1:]\n"
        "assert anomtune('predict', model, images, '--out', out) == 0\n"
        "assert anomtune('bench', model, '--seconds', '0.1', '--no-onnx') == 0\n"
        "import anomtune as at\n"
        "print(len([p.score for p in at.load_model(model).predict([images])]), 'in Python')\n"
        "print(sorted(set(REFUSED) & {name.partition('.')[0] for name in sys.modules}))\n"
    )
    done = python(code, model, toy_data / "plate/test", tmp_path / "out")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "12 images scored" in done.stdout
    assert done.stdout.endswith("12 in Python\n[]\n")
    assert len(list((tmp_path / "out/maps").rglob("*.png"))) == 12


@pytest.mark.slow
def test_what_needs_more_says_so_in_one_line(model, toy_data, tmp_path) -> None:
    code = WITHOUT.format(refused=refused_modules()) + (
        "data, model, place = sys.argv[1:]\n"
        "assert anomtune('--help') == 0\n"
        "for command in (\n"
        "    ('sweep',), ('leaderboard', place), ('audit', 'folder', data), ('report', place),\n"
        "    ('methods',), ('doctor',), ('jobs', '--address', 'http://127.0.0.1:1'),\n"
        "    ('export', model, '--onnx', place + '/x.onnx'), ('best', 's3://b/m'),\n"
        "):\n"
        "    assert anomtune(*command) == 2, command\n"
    )
    done = python(code, toy_data, model, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Usage" in done.stdout
    lines = done.stderr.splitlines()
    assert len(lines) == 9
    for line in lines:
        assert re.match(r"anomtune: \S+ is not installed, which ", line), line


#: What Windows has not is hidden from anomtune; other libraries have ways of their own there.
WITHOUT_POSIX = """
import builtins, os, pathlib, signal, sys, types
MODULES = {"resource", "fcntl", "pwd", "grp", "termios", "tty", "pty", "syslog", "posix"}
WINDOWS_OS = (
    "PathLike abspath close cpu_count environ fdopen fsdecode fsencode fspath fsync getcwd getpid "
    "kill link lstat makedirs mkdir name open path pathsep remove rename replace rmdir scandir sep "
    "stat stat_result strerror symlink unlink utime walk DirEntry O_RDONLY O_RDWR O_CREAT O_WRONLY "
    "O_BINARY O_EXCL O_TRUNC lexists".split()
)
WINDOWS_SIGNALS = "SIGABRT SIGFPE SIGILL SIGINT SIGSEGV SIGTERM".split()
def less(module, keep):
    small = types.ModuleType(module.__name__)
    vars(small).update({name: value for name, value in vars(module).items() if keep(name)})
    return small
OS = less(os, lambda name: name in WINDOWS_OS)
SIGNAL = less(signal, lambda name: name in WINDOWS_SIGNALS or not name.startswith(("SIG", "pthr")))
given = builtins.__import__
def imported(name, globals=None, locals=None, fromlist=(), level=0):
    if str((globals or {}).get("__name__", "")).startswith("anomtune"):
        if name in MODULES:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        if name in ("os", "signal"):
            return OS if name == "os" else SIGNAL
    return given(name, globals, locals, fromlist, level)
builtins.__import__ = imported
def no_proc(real):
    def call(self, *rest, **more):
        if str(self).startswith("/proc"):
            raise FileNotFoundError(self)
        return real(self, *rest, **more)
    return call
for name in ("read_text", "write_text", "readlink"):
    setattr(pathlib.Path, name, no_proc(getattr(pathlib.Path, name)))
"""


@pytest.mark.slow
def test_nothing_that_posix_alone_has_is_used(toy_data, tmp_path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(
        f"dataset: {{name: folder, root: {toy_data}}}\ncategory: plate\nmethod: padim\n"
        "image_size: 32\nhyperparameters: {backbone: mobilenet_v2, weights: random}\n"
        "validation: {protocol: synthetic}\n"
    )
    code = WITHOUT_POSIX + (
        "config, images, place = sys.argv[1:]\n"
        "from anomtune.cli.main import app\n"
        "from anomtune.datasets.io import eviction\n"
        "assert not eviction._LOCKS and not hasattr(eviction.os, 'getuid')\n"
        "def anomtune(*arguments): app(arguments, standalone_mode=False)\n"
        "anomtune('train', config, '--out', place + '/model')\n"
        "anomtune('predict', place + '/model', images, '--out', place + '/out')\n"
        "anomtune('bench', place + '/model', '--seconds', '0.1', '--no-onnx')\n"
        "import anomtune as at\n"
        "print(len(list(at.load_model(place + '/model').predict([images]))), 'in Python')\n"
    )
    done = python(code, config, toy_data / "plate/test", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "12 images scored" in done.stdout
    assert "memory not known here" in done.stdout
    assert "12 in Python" in done.stdout


def test_paths_of_windows_are_taken_apart_as_windows_does() -> None:
    new, old = PureWindowsPath(r"C:\line\new"), PureWindowsPath(r"c:\Line\old")
    common = common_folder([new, old])
    assert common == PureWindowsPath(r"C:\line")
    assert names_below(old / r"a\1.png", common) == ("old", "a", "1.png")
    other = PureWindowsPath(r"D:\new")
    assert common_folder([new, other]) is None
    assert names_below(new / "1.png", None) == ("C", "line", "new", "1.png")
    assert names_below(other / "1.png", None) == ("D", "new", "1.png")
    share = PureWindowsPath(r"\\server\share\new")
    assert names_below(share / "1.png", None) == ("server_share", "new", "1.png")
    assert common_folder([PurePosixPath("/a/b"), PurePosixPath("/a/c")]) == PurePosixPath("/a")


@pytest.mark.parametrize(
    ("path", "posix", "windows"),
    [
        ("trials/plate/toy/00001.json", False, False),
        ("", False, False),
        ("a/../b", True, True),
        ("/etc/passwd", True, True),
        (r"a\..\..\b", False, True),
        (r"C:\windows", False, True),
        ("C:x", False, True),
        (r"\b", False, True),
    ],
)
def test_no_path_leaves_a_storage(path, posix, windows) -> None:
    assert leaves(path, PurePosixPath) == posix
    assert leaves(path, PureWindowsPath) == windows
