"""What is audited, and installed by hash, is what ``pyproject.toml`` asks for (`make lock`)."""

from __future__ import annotations

import re
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.conftest import PROJECT

FOLDER = PROJECT / "requirements"
PROJECT_FILE = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT_FILE["optional-dependencies"]
AUTOSCALER = re.findall(r"^\w.*$", (FOLDER / "autoscaler.in").read_text(), re.MULTILINE)
#: What each file is compiled from.
WANTED = {
    "all.txt": [
        *PROJECT_FILE["dependencies"],
        *(line for extra in EXTRAS.values() for line in extra),
    ],
    "image.txt": [*PROJECT_FILE["dependencies"], *AUTOSCALER],
}


def locked(name: str) -> dict[str, list[tuple[str, list[str]]]]:
    """Returns the versions of every package of a file, with their hashes."""
    found: dict[str, list[tuple[str, list[str]]]] = {}
    for line in (FOLDER / name).read_text().replace("\\\n", " ").splitlines():
        pinned, *hashes = line.split("--hash=")
        requirement = Requirement(pinned)
        (pin,) = requirement.specifier
        assert pin.operator == "==", line
        found.setdefault(canonicalize_name(requirement.name), []).append((pin.version, hashes))
    return found


@pytest.mark.parametrize("name", sorted(WANTED))
def test_every_dependency_is_locked_within_its_bounds(name):
    found = locked(name)
    for line in WANTED[name]:
        wanted = Requirement(line)
        versions = [version for version, _ in found.get(canonicalize_name(wanted.name), [])]
        assert versions, f"{name}: no {wanted.name}; run `make lock`"
        for version in versions:
            assert wanted.specifier.contains(version), f"{name}: {line}, not {version}: `make lock`"


@pytest.mark.parametrize("name", sorted(WANTED))
def test_every_version_has_hashes_and_no_place_is_named(name):
    for package, versions in locked(name).items():
        for version, hashes in versions:
            assert hashes, f"{package} {version}"
            assert all(re.fullmatch(r"sha256:[0-9a-f]{64}\s*", text) for text in hashes), package
    text = (FOLDER / name).read_text()
    assert not re.search(r"://|^-|index-url|find-links|@", text, re.MULTILINE)


def test_what_is_built_and_audited_is_what_is_locked():
    docker = (PROJECT / "cluster/Dockerfile").read_text()
    assert "--require-hashes -r source/requirements/image.txt" in docker
    audit = (PROJECT / ".github/workflows/audit.yml").read_text()
    assert "pip-audit" in audit
    for name in WANTED:
        assert f"-r requirements/{name}" in audit
