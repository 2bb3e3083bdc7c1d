"""Every link inside the documents leads somewhere."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness.commands import ROOT

DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "workers" / "torchd_ts").glob("*.md")])
_FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
_CODE = re.compile(r"`[^`\n]+`")
_LINK = re.compile(r"\[[^\]]*\]\(([^()\s]+)\)")
_HEADING = re.compile(r"^#+ +(.+?) *$", re.MULTILINE)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_relative_link_and_anchor_resolves(document: Path) -> None:
    broken = [link for link in _links(document) if not _resolves(document, link)]
    assert broken == []


def test_a_link_to_a_missing_file_or_heading_is_found() -> None:
    """The check itself can fail."""
    readme = ROOT / "README.md"
    assert _resolves(readme, "docs/grpc.md#errors")
    assert not _resolves(readme, "docs/grpc.md#no-such-heading")
    assert not _resolves(readme, "docs/no-such-file.md")


def _links(document: Path) -> Iterator[str]:
    text = _CODE.sub("", _FENCE.sub("", document.read_text(encoding="utf-8")))
    return (link for link in _LINK.findall(text) if "://" not in link and not link.startswith("mailto:"))


def _resolves(document: Path, link: str) -> bool:
    path, _, anchor = link.partition("#")
    target = document.parent / path if path else document
    return target.exists() and (not anchor or anchor in _anchors(target))


def _anchors(document: Path) -> set[str]:
    """The headings as forges name them: lower case, hyphens for blanks, a counter behind one that comes again."""
    found: set[str] = set()
    for heading in _HEADING.findall(_FENCE.sub("", document.read_text(encoding="utf-8"))):
        name = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        again = sum(one == name or re.fullmatch(rf"{re.escape(name)}-\d+", one) is not None for one in found)
        found.add(f"{name}-{again}" if again else name)
    return found
