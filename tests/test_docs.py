"""The pages of docs/: every Python block runs as printed, in order, in one namespace."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import sdegen

DOCS = Path(__file__).parent.parent / "docs"
PAGES = sorted(DOCS.glob("*.md"))


def programs(page: Path) -> list[tuple[int, str]]:
    """The line at which each Python block starts, and the block."""
    text = page.read_text()
    return [(text[: m.start(1)].count("\n"), m[1]) for m in re.finditer(r"```python\n(.*?)```", text, re.S)]


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_page_runs(page, tmp_path, monkeypatch):
    pytest.importorskip("diffusers")
    torch.set_default_dtype(torch.float32)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": page.stem}
    for line, program in programs(page):
        exec(compile("\n" * line + program, page, "exec"), names)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_lines_are_wrapped(page):
    long = [line for line in page.read_text().splitlines() if len(line) > 120 and not line.startswith("|")]
    assert not long


def test_the_table_of_schedulers_is_python():
    """Every solver in its second column can be made."""
    pytest.importorskip("diffusers")
    from diffusers import DDIMScheduler

    from sdegen.interop.diffusers import spacing

    names = {**vars(sdegen), "spacing": spacing, "scheduler": DDIMScheduler(), "n": 5}
    rows = [
        line.split("|") for line in (DOCS / "coming_from_diffusers.md").read_text().splitlines() if line[:3] == "| `"
    ]
    cells = [cell for row in rows for cell in re.findall(r"`([^`]*)`", row[2])]
    assert len(rows) == len(cells) == 11
    for cell in cells:
        assert isinstance(eval(cell, names), sdegen.Solver)


def test_there_are_pages():
    assert {page.stem for page in PAGES} >= {"coming_from_diffusers"}
    assert all(programs(page) for page in PAGES)
