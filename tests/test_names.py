"""A name that the file system allows is one text, and no two names are the same."""

from __future__ import annotations

import ast
import os

import hypothesis.strategies as st
from hypothesis import given

from anomtune.names import LONGEST, readable, to_name, to_text, typed, with_suffix
from tests.conftest import PROJECT

#: Any name of a file: bytes without a slash and a NUL, as Python gives them.
NAMES = (
    st.binary(min_size=1, max_size=LONGEST)
    .map(lambda content: content.translate(None, b"/\0"))
    .filter(lambda content: content not in {b"", b".", b".."})
    .map(os.fsdecode)
)
#: Those that look like what stands for another.
NASTY = st.lists(
    st.sampled_from(["\\", "x", "5c", "\\xfc", "\\x5c", "fc", "\udcfc", "é", "\n"]), min_size=1
).map("".join)


@given(NAMES | NASTY)
def test_a_name_comes_back_from_its_text(name):
    text = to_text(name)
    text.encode()  # valid anywhere
    assert to_name(text) == name
    assert typed(text) == readable(text) == text


@given(NAMES | NASTY, NAMES | NASTY)
def test_two_names_have_two_texts(one, other):
    assert (to_text(one) == to_text(other)) == (one == other)


@given(st.text(st.characters(exclude_characters="\\/", exclude_categories=["Cs", "Cc"])))
def test_the_text_of_an_ordinary_name_is_the_name(name):
    assert to_text(name) == name


def test_the_text_is_what_people_would_write():
    assert to_text(os.fsdecode(b"M\xfcller.png")) == "M\\xfcller.png"
    assert to_text("Müller.png") == "Müller.png"
    assert to_text("two\nlines") == "two\\x0alines"
    assert to_text("C:\\data") == "C:\\data"
    assert to_text("a\\xfc.png") == "a\\x5cxfc.png"


@given(NAMES, NAMES)
def test_a_suffix_never_makes_one_name_of_two_nor_one_that_is_too_long(one, other):
    first, second = with_suffix(one, ".png"), with_suffix(other, ".png")
    assert len(os.fsencode(first)) <= LONGEST
    assert first.endswith(".png")
    assert (first == second) == (one == other)


def test_a_long_name_of_characters_is_cut_between_them():
    os.fsencode(with_suffix("ü" * 127, ".png")).decode()


def test_every_text_file_is_opened_with_its_encoding():
    """The locale's must never decide what a file of anomtune holds."""
    wrong = []
    for folder in ("anomtune", "datasets", "models", "search", "cluster"):
        for path in sorted((PROJECT / folder).rglob("*.py")):
            wrong += [
                f"{path.relative_to(PROJECT)}:{call.lineno}"
                for call in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
                if isinstance(call, ast.Call) and _depends_on_the_locale(call)
            ]
    assert not wrong, f"say encoding='utf-8': {', '.join(wrong)}"


def _depends_on_the_locale(call: ast.Call) -> bool:
    function = call.func
    name = getattr(function, "attr", getattr(function, "id", ""))
    if name not in {"open", "fdopen", "read_text", "write_text"}:
        return False
    if any(keyword.arg in {"encoding", None} for keyword in call.keywords):
        return False
    arguments = [*call.args, *(k.value for k in call.keywords if k.arg == "mode")]
    texts = [a.value for a in arguments if isinstance(a, ast.Constant) and isinstance(a.value, str)]
    if name in {"read_text", "write_text"}:
        # Of an installed package's metadata `read_text` is UTF-8 by itself.
        owner = getattr(getattr(function, "value", None), "id", "")
        return owner != "distribution" and not any(text.startswith("utf") for text in texts)
    if name == "open" and isinstance(function, ast.Attribute):
        # `Path.open` has its mode first, `Image.open`, a ZIP archive's and the like read bytes.
        owner = getattr(function.value, "id", "")
        if owner in {"Image", "archive", "gzip", "os"}:
            return False
        return not any("b" in text for text in texts) and not _is_a_method_of_ours(call)
    return not any("b" in text for text in texts)


def _is_a_method_of_ours(call: ast.Call) -> bool:
    """`DatasetConfig.open()` opens no file: it is called without a mode on a config."""
    return not call.args and not call.keywords and "dataset" in ast.unparse(call.func).lower()
