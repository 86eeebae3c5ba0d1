"""The code blocks of the documentation."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import PROJECT

#: Every page, in the order in which a reader would run them: later ones use what earlier ones made.
PAGES = (
    *(PROJECT / "docs" / f"{name}.md" for name in ("start", "choose", "python")),
    *sorted(
        path
        for path in (PROJECT / "docs").glob("*.md")
        if path.stem not in {"start", "choose", "python"}
    ),
    PROJECT / "README.md",
)
_BLOCK = re.compile(
    r"^(?:<!-- not run: (?P<reason>[^\n]+) -->\n)?```(?P<language>\w*)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    """A fenced block of a page.

    Attributes:
        page: The file.
        line: Where its text begins, from 1.
        language: What stands behind the fence.
        text: What stands between the fences.
        not_run: Why it cannot be run here, as the comment above it says; ``None``: it is run.
    """

    page: Path
    line: int
    language: str
    text: str
    not_run: str | None

    @property
    def place(self) -> str:
        """Page and line, as an editor opens them."""
        return f"{self.page.relative_to(PROJECT)}:{self.line}"


def blocks(page: Path) -> list[Block]:
    """Returns the fenced blocks of a page, in order."""
    text = page.read_text(encoding="utf-8")
    return [
        Block(
            page,
            text.count("\n", 0, found.start("text")) + 1,
            found["language"],
            found["text"],
            found["reason"],
        )
        for found in _BLOCK.finditer(text)
    ]
