"""YAML as all files of the project are read and written: data, and no key twice."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import yaml

from anomtune.errors import SweepError

#: Values of a file, with aliases unfolded, and characters of a number or a date.
_MOST, _LONGEST = 200_000, 1_000
_TEXT = "tag:yaml.org,2002:str"


class _Twice(yaml.YAMLError):
    """A key that a mapping has already."""


class _TooMuchError(yaml.YAMLError):
    """More than a file of settings holds."""


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice, and reads ``1e-4`` as a number.

    The second as YAML 1.2 does; 1.1 wants ``1.0e-4``.
    """

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Looks at the keys before ``<<`` adds others, which may be given again."""
        node = super().compose_mapping_node(anchor)
        lines: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            line, name = key.start_mark.line + 1, (key.tag, key.value)
            if name in lines:
                raise _Twice(
                    f"line {line}: the key {key.value!r} is given twice, first in line "
                    f"{lines[name]}; remove one of the two"
                )
            lines[name] = line
        assert isinstance(node, yaml.MappingNode)
        return node


def _count(node: yaml.Node, known: dict[int, int]) -> int:
    """Returns how many values a node is made of, where every alias counts as all that it names.

    Args:
        node: As composed, before ``<<`` is written out, which takes as much memory.
        known: What has been counted; 0 of what is being counted.

    Raises:
        _TooMuchError: If there are more than any file of settings has, a value is as long as none
            is, or contains itself.
    """
    if (found := known.get(id(node))) is not None:
        if not found:
            raise _TooMuchError(f"line {node.start_mark.line + 1}: a value that contains itself")
        return found
    if isinstance(node, yaml.ScalarNode):
        if len(node.value) > _LONGEST and node.tag != _TEXT:
            raise _TooMuchError(f"line {node.start_mark.line + 1}: too long for a number or a date")
        return 1
    known[id(node)] = 0
    if isinstance(node, yaml.MappingNode):
        total = sum(_count(key, known) + _count(value, known) for key, value in node.value)
    else:
        total = sum(_count(item, known) for item in node.value)
    if total > _MOST:
        raise _TooMuchError(f"its aliases unfold to more than {_MOST} values")
    known[id(node)] = total + 1
    return total + 1


class _Dumper(yaml.SafeDumper):
    """SafeDumper that quotes the strings that `_Loader` would take for numbers."""


for _kind in (_Loader, _Dumper):
    _kind.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"),
        list("-+.0123456789"),
    )


def dump_yaml(data: Any) -> str:
    """Returns data as YAML that `read_yaml` reads back to the same; ASCII only."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False)


def read_yaml(text: str, origin: str) -> Any:
    """Parses YAML as data.

    Raises:
        SweepError: If it is not YAML, or gives a key twice; the message says where.
    """
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _count(node, {})
        return loader.construct_document(node)
    except _Twice as error:
        raise SweepError(f"{origin}: {error}") from None
    except (yaml.YAMLError, ValueError, LookupError, ArithmeticError) as error:
        # All but the first: a date or a number that does not exist, as `!!int x`.
        raise SweepError(f"{origin}: not valid YAML: {_said(error)}") from None
    except RecursionError:
        raise SweepError(f"{origin}: not valid YAML: nested too deep") from None


def _said(error: Exception) -> str:
    """Returns what is wrong and where, without the lines of the file, which may hold a secret."""
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return " ".join(str(error).split())
    mark = error.problem_mark
    said = [text for text in (error.context, error.problem) if text]
    return " ".join(f"{', '.join(said)}, line {mark.line + 1}, column {mark.column + 1}".split())


def read_yaml_file(path: str | os.PathLike[str], what: str, *, hint: str = "") -> Any:
    """Parses a file of YAML, which is UTF-8 in every locale.

    Args:
        path: The file.
        what: What it should be, for the message.
        hint: What to do, for the message.

    Raises:
        SweepError: If it cannot be read, or is not YAML.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:  # ValueError: no UTF-8, or a name that is none
        reason = getattr(error, "strerror", None) or "not a text file in UTF-8"
        raise SweepError(f"{path}: cannot read the {what}: {reason}{hint}") from None
    return read_yaml(text, str(path))
