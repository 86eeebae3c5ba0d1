"""The pages of ``docs/`` that are drawn from the code: ``python -m anomtune.cli.documentation``.

Methods, datasets, commands and columns are documented where they are defined; a page is a look at
that, and a test fails where it is not the newest.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from typer.models import ArgumentInfo, OptionInfo, ParameterInfo

from anomtune.cli.catalogue import by_name, origin, scoring_rows, training_rows
from anomtune.cli.main import app
from anomtune.models.hyperparameters import Hyperparameters
from anomtune.registry import DATASETS, METHODS, Registry
from anomtune.search.config import MethodConfig
from anomtune.search.decide.plan import plan_search
from anomtune.search.results.documentation import leaderboard_page

_DRAWN = "Drawn by `make docs` from {source}: edit that, not this page."

_METHODS = """# Methods

{drawn} `anomtune methods NAME` shows the same in a terminal,
`--dataset D --category C` with what the paper set there.

Every table says what can be set, its default, what a search tries, and where both come from. A
default is the paper's value; *inferred* means that the paper leaves it open. "fixed" is not
searched, unless a sweep file gives it a range (`space`). What stands below `scoring` needs no
training: every trial judges all of these choices ([how one is chosen](scoring.md)). How the methods
share sizes, lengths, backbones and presets: [what is searched](searching.md).

The models of anomalib are methods, too: [anomalib](anomalib.md).

| method | what it is |
| --- | --- |
{methods}
"""

_DATASETS = """# Datasets

{drawn}

Each is read from the layout in which it is distributed. `anomtune audit DATASET ROOT` compares with
the published counts and names what is missing; `--manifest FILE.csv` writes which image plays which
part. Roots may be `s3://`, `gs://` or any other URI that pyarrow opens: fetched once per machine.
Your own images are a [`folder` or a `table`](images.md).

| dataset | what it reads |
| --- | --- |
{datasets}
"""

_COMMANDS = """# Commands

{drawn} `anomtune COMMAND --help` shows one of them.

Exit codes: 0 done; 1 some study has no completed trial, or a confirm run failed; 2 bad input, said
in one line; 3 interrupted, the same command goes on.

| command | what it does |
| --- | --- |
{commands}
"""


def methods_page() -> str:
    """Returns ``docs/methods.md``: every hyperparameter, default, range and source."""
    kinds = _own(METHODS, "anomtune.models.")
    rows = [(f"[`{name}`](#{name})", _summary(inspect.getmodule(kinds[name]))) for name in kinds]
    page = _METHODS.format(drawn=_DRAWN.format(source="`models/`"), methods=_rows(rows))
    return page + "".join(_method(name, kind.Hyperparameters) for name, kind in kinds.items())


def _method(name: str, kind: type[Hyperparameters]) -> str:
    plan = plan_search(name, MethodConfig(), "", None, image_size=None)
    head = ("hyperparameter", "default", "searched over", "meaning")
    rows = (*training_rows(plan, {}), *scoring_rows(plan.defaults.scoring, {}))
    cells = [(f"`{field}`", f"`{value}`", searched, text) for field, value, searched, text in rows]
    parts = [f"## {name}", _description(inspect.getmodule(kind)), _table(head, cells)]
    if kind.presets:
        parts.append(f"### Presets of {name}")
        values = ((f"`{key}`", _values(preset)) for key, preset in kind.presets.items())
        parts.append(_table(("preset", "what it sets"), values))
    if kind.settings:
        parts.append(f"### Datasets and categories of {name}")
        settings = ((_values(s.values), origin(s)) for s in kind.settings)
        parts.append(_table(("what trial 0 has", "where, and its source"), settings))
    protocol = kind.protocol
    inferred = " (partly inferred)" if protocol.inferred else ""
    seeds = ", ".join(map(str, protocol.seeds))
    judged = f"How its paper judges it{inferred}: {protocol.source.rstrip('.')}."
    parts.append(f"{judged} `anomtune reproduce` trains with seed {seeds}.")
    return "\n" + "\n\n".join(parts) + "\n"


def datasets_page() -> str:
    """Returns ``docs/datasets.md``: what each family reads, and what a sweep file may say of it."""
    kinds = _own(DATASETS, "anomtune.datasets.")
    rows = [(f"[`{name}`](#{name})", _summary(kind)) for name, kind in kinds.items()]
    page = _DATASETS.format(drawn=_DRAWN.format(source="`datasets/`"), datasets=_rows(rows))
    for name, kind in kinds.items():
        parts = [f"## {name}", _description(kind)]
        if kind.options:
            known = ", ".join(f"`{option}`" for option in sorted(kind.options))
            parts.append(f"Options in a sweep file: {known}.")
        page += "\n" + "\n\n".join(parts) + "\n"
    return page


def commands_page() -> str:
    """Returns ``docs/commands.md``: every command with its arguments and options."""
    commands = [info.callback for info in app.registered_commands if info.callback is not None]
    rows = [(f"[`anomtune {c.__name__}`](#{c.__name__})", _summary(c)) for c in commands]
    source = "the signatures in `anomtune/cli/`"
    page = _COMMANDS.format(drawn=_DRAWN.format(source=source), commands=_rows(rows))
    for command in commands:
        given = list(_parameters(command))
        usage = " ".join(usage for usage, *_ in given)
        parts = [f"## {command.__name__}", _description(command)]
        parts.append(f"```text\nanomtune {command.__name__} {usage}".rstrip() + "\n```")
        table = [(f"`{written}`", default, text) for _, written, default, text in given]
        if table:
            parts.append(_table(("argument or option", "default", "meaning"), table))
        page += "\n" + "\n\n".join(parts) + "\n"
    return page


def _own(registry: Registry[Any], package: str) -> dict[str, Any]:
    """Returns by name what anomtune itself brings: nothing of plug-ins, nor of anomalib."""
    kinds = {name: registry.get(name) for name in registry.names() if "." not in name}
    return {name: kind for name, kind in kinds.items() if kind.__module__.startswith(package)}


#: The pages by the name of their file in ``docs/``.
PAGES: dict[str, Callable[[], str]] = {
    "commands.md": commands_page,
    "datasets.md": datasets_page,
    "leaderboard.md": leaderboard_page,
    "methods.md": methods_page,
}


def _parameters(command: Callable[..., Any]) -> Iterator[tuple[str, str, str, str]]:
    """Yields usage, how it is written, default and meaning of what a command is given."""
    hints = get_type_hints(command, include_extras=True)
    for name, parameter in inspect.signature(command).parameters.items():
        kind, *extras = get_args(hints[name])
        (info,) = (extra for extra in extras if isinstance(extra, ParameterInfo))
        required = parameter.default is inspect.Parameter.empty
        default = "" if required or parameter.default is None else f"`{parameter.default}`"
        notes = [info.help or ""]
        if info.envvar:
            notes.append(f"Environment variable: `{info.envvar}`.")
        if isinstance(info, ArgumentInfo):
            written = info.metavar or name.upper()
            usage = written if required else f"[{written}]"
            yield usage, written, default, " ".join(notes)
            continue
        assert isinstance(info, OptionInfo)
        # Beside `Annotated` the first name stands where a default would.
        named = (info.default, *(info.param_decls or ()))
        flags = [flag for flag in named if isinstance(flag, str) and flag.startswith("-")]
        written = flags[0] if flags else f"--{name.replace('_', '-')}"
        takes = "" if kind is bool else info.metavar or _kind(kind)
        written = f"{written} {takes}".rstrip()
        if required:
            notes.append("Must be given.")
        if _is_list(kind):
            notes.append("May be given more than once.")
        shown = "" if parameter.default is False else default
        usage = written if required else f"[{written}]"
        yield usage, written, shown, " ".join(filter(None, notes))


def _is_list(kind: Any) -> bool:
    return any(get_origin(part) is list for part in (kind, *get_args(kind)))


def _kind(kind: Any) -> str:
    plain = next((part for part in get_args(kind) if part is not type(None)), kind)
    return {int: "N", float: "X", Path: "PATH"}.get(plain, "TEXT")


def _summary(thing: object) -> str:
    return (inspect.getdoc(thing) or "").strip().split("\n\n")[0].replace("\n", " ")


def _description(thing: object) -> str:
    """Returns a docstring as Markdown, without its examples, arguments and errors."""
    paragraphs = (inspect.getdoc(thing) or "").strip().split("\n\n")
    kept: list[str] = []
    for text in paragraphs:
        if re.match(r"(Args|Raises|Returns|Attributes|Yields):", text) or text.startswith(">>>"):
            continue
        if text.startswith("    "):
            kept.append("```text\n" + inspect.cleandoc(text) + "\n```")
        else:
            kept.append(_plain(text))
    return "\n\n".join(kept)


def _plain(text: str) -> str:
    """Returns reStructuredText's literals and names as Markdown has them."""
    return re.sub(r"``(.+?)``", r"`\1`", text)


def _values(values: Any) -> str:
    return ", ".join(f"`{name}` {value}" for name, value in by_name(values)) or "nothing"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return _rows([head, ["---"] * len(head), *rows])


def _rows(rows: Iterable[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(map(_cell, row))} |" for row in rows)


def _cell(text: str) -> str:
    """Returns a text that neither ends a cell of a table nor begins markup in it."""
    return _plain(text).replace("\n", " ").replace("|", "\\|").replace("<", "&lt;")


def write_pages(folder: Path) -> None:
    """Writes every page into a folder."""
    for name, page in PAGES.items():
        (folder / name).write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    write_pages(Path(sys.argv[1]))
