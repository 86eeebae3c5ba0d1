"""The documentation: every block of code runs, every link leads somewhere, and the site builds."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
import tomllib
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from anomtune.cli.documentation import PAGES as GENERATED
from anomtune.registry import ALL, METHODS
from anomtune.search.config import Sweep, parse_sweep
from anomtune.search.decide.plan import plan_search
from tests.conftest import PROJECT, draw_category
from tests.markdown import PAGES, Block, blocks

BLOCKS = [block for page in PAGES for block in blocks(page)]
#: Pages whose blocks another test runs, with files of their own.
ELSEWHERE = {"plugins.md": "tests/test_templates.py"}
#: What the commands and sweeps of the pages are given here, so that all of them take seconds.
METHOD = {"fixed": {"backbone": "mobilenet_v2", "resolution": None}}
SMALL = {
    "methods": {"padim": METHOD, "patchcore": METHOD},
    "image_size": 64,
    "trials": 2,
    "rungs": 1,
    "confirm": {"top": 1, "seeds": [1]},
}
SMALLER = {
    "image_size=128": "image_size=64",
    "trials=50": "trials=2, rungs=1, confirm={'top': 1, 'seeds': [1]}",
}
NOTEBOOK = PROJECT / "examples/first_sweep.ipynb"


def of(*languages: str) -> list[Any]:
    return [pytest.param(b, id=b.place) for b in BLOCKS if b.language in languages]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_block_says_what_it_is(page: Path) -> None:
    found = blocks(page)
    fences = re.findall(r"^\s*```", page.read_text(), re.MULTILINE)
    assert len(fences) == 2 * len(found), "a fence is indented, or its language is no word"
    known = {"bash", "python", "yaml", "toml", "text"}
    assert {block.language for block in found} <= known


def test_few_blocks_are_not_run() -> None:
    left_out = [block.place for block in BLOCKS if block.not_run]
    runnable = [block for block in BLOCKS if block.language in {"bash", "python"}]
    assert len(left_out) <= 8, left_out
    assert len(runnable) - len(left_out) >= 15


@pytest.mark.parametrize("block", of("yaml"))
def test_a_sweep_file_or_a_part_of_one(block: Block) -> None:
    given = yaml.safe_load(block.text)
    assert set(given) <= set(Sweep.model_fields), "no keys of a sweep file"
    whole = {"name": "part", "dataset": {"name": "synthetic"}, "methods": {"padim": {}}}
    config = parse_sweep(whole | given, block.place)
    for name, method in config.methods.items():
        if name in METHODS.names():
            plan_search(name, method, config.dataset.name, None, image_size=config.image_size)


@pytest.mark.parametrize("block", of("toml"))
def test_toml_is_toml(block: Block) -> None:
    assert tomllib.loads(block.text)


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with the images that the pages speak of, small ones."""
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(("bottle", "screw")):
        draw_category(tmp_path / "line-3" / name, train=8, size=64, seed=seed)
    draw_category(tmp_path / "drawn", train=12, good=2, bad=9, size=64, seed=2)
    (tmp_path / "welds").mkdir()
    (tmp_path / "drawn/train/good").rename(tmp_path / "welds/good")
    (tmp_path / "drawn/test/spot").rename(tmp_path / "welds/defective")
    (tmp_path / "drawn/test/good").rename(tmp_path / "new_images")
    yield tmp_path
    for registry in ALL:
        registry._registered.clear()


def shell(text: str, run: Callable[..., tuple[int, str, str]]) -> None:
    """Runs the commands of a block in this process; sweeps are made small."""
    for line in text.replace("\\\n", " ").splitlines():
        program, *arguments = shlex.split(line, comments=True) or [None]
        if program is None:
            continue
        assert program == "anomtune", f"{program}: cannot be run here; say so above the block"
        arguments, _, target = "\0".join(arguments).partition("\0>\0")
        arguments = arguments.split("\0")
        if arguments[0] == "sweep":
            for key, value in SMALL.items():
                arguments += ["--set", f"{key}={value!r}".replace("None", "null")]
        code, output, errors = run(*arguments)
        assert code == 0, f"{line}: exit code {code}\n{output}{errors}"
        if target:
            Path(target).write_text(output)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_every_page_runs_from_top_to_bottom(workplace: Path, run: Any) -> None:
    """One test for all: what one page makes, others use."""
    failed = []
    for page in PAGES:
        if page.name in ELSEWHERE:
            continue
        names: dict[str, Any] = {"__name__": page.stem}
        for block in blocks(page):
            if block.not_run:
                continue
            try:
                if block.language == "bash":
                    shell(block.text, run)
                elif block.language == "python":
                    text = "\n" * (block.line - 1) + block.text
                    for large, small in SMALLER.items():
                        text = text.replace(large, small)
                    exec(compile(text, str(page), "exec"), names)
            except (Exception, SystemExit):  # noqa: BLE001 - whatever a page does wrong
                failed.append(f"{block.place}\n{traceback.format_exc()}")
    assert not failed, "\n".join(failed)
    assert (workplace / "sweeps/line-3/report.html").is_file()


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_the_notebook_runs_from_top_to_bottom(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    names: dict[str, Any] = {"__name__": "notebook"}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [], "strip the outputs"
            exec(compile("".join(cell["source"]), f"{NOTEBOOK.name}, {cell['id']}", "exec"), names)
    assert len(names["predictions"]) == 2
    assert names["result"].finished


@pytest.mark.parametrize("name", GENERATED)
def test_what_is_drawn_from_the_code_is_the_newest(name: str) -> None:
    assert (PROJECT / "docs" / name).read_text() == GENERATED[name](), "run: make docs"


def test_the_readme_is_short_and_has_the_commands_of_continuous_integration() -> None:
    lines = (PROJECT / "README.md").read_text().splitlines()
    assert len(lines) <= 120
    commands = [line.split("#")[0].strip() for line in lines]
    assert {"make demo", "make test"} <= set(commands)


def anchors(page: Path) -> set[str]:
    from markdown.extensions.toc import slugify

    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {slugify(heading.replace("`", ""), "-") for heading in headings}


@pytest.mark.parametrize(
    "page", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "cluster/README.md"]
)
def test_links_outside_of_the_site_lead_somewhere(page: str) -> None:
    path = PROJECT / page
    links = re.findall(r"\]\((?!https?://)([^)#]*)(?:#([^)]*))?\)", path.read_text())
    for target, anchor in links:
        assert (path.parent / target).exists(), target
        assert not anchor or anchor in anchors(path.parent / target), f"{target}#{anchor}"


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    """Links, anchors and pages that no menu has are warnings, and each of them ends the build."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path / "site"]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=PROJECT, env=environment
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WARNING" not in done.stdout + done.stderr
    page = (tmp_path / "site/index.html").read_text()
    fetched = re.findall(r"<(?:script|link|img)\b[^>]*(?:src|href)=\"?(https?://[^\s\">]+)", page)
    assert not fetched, "the site fetches from another host"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("schema", "pattern"),
    [
        ("github-workflows", ".github/workflows/*.yml"),
        ("github-issue-forms", ".github/ISSUE_TEMPLATE/[!c]*.yml"),
        ("github-issue-config", ".github/ISSUE_TEMPLATE/config.yml"),
        ("citation-file-format", "CITATION.cff"),
    ],
)
def test_files_for_github_fit_their_schemas(schema: str, pattern: str) -> None:
    """By the schemas that come with check-jsonschema: nothing is fetched."""
    files = sorted(map(str, PROJECT.glob(pattern)))
    assert files
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", f"vendor.{schema}"]
    done = subprocess.run([*command, *files], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_the_citation_is_of_this_version() -> None:
    citation = yaml.safe_load((PROJECT / "CITATION.cff").read_text())
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    assert (citation["version"], citation["license"]) == (project["version"], project["license"])


@pytest.mark.parametrize("path", sorted((PROJECT / ".github/workflows").glob("*.yml")))
def test_workflows_may_read_alone_and_pin_what_they_use(path: Path) -> None:
    workflow = yaml.safe_load(path.read_text())
    assert workflow["permissions"] == {"contents": "read"}
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    used = [step["uses"] for step in steps if "uses" in step]
    assert used
    assert all(re.fullmatch(r"actions/[a-z-]+@v\d+\.\d+\.\d+", action) for action in used), used
