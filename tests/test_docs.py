"""The pages of docs/: every Python block runs as printed, in order, in one namespace, beside the peer it speaks of."""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

import sdegen

DOCS = Path(__file__).parent.parent / "docs"
PAGES = sorted(DOCS.glob("*.md"))
RUN = {
    "coming_from_azula",
    "coming_from_diffusers",
    "coming_from_flow_matching",
    "coming_from_k_diffusion",
    "coming_from_score_sde",
    "coming_from_torchcfm",
    "theory",
    "which_number",
    "which_prediction",
    "which_solver",
    "write_your_own",
}
"""The pages that must be there, and that consist of what can be run."""

PEERS = {name: name.removeprefix("coming_from_") for name in RUN if name.startswith("coming_from_")}
del PEERS["coming_from_score_sde"]  # no package: its code is shown as text, and not run


def programs(page: Path) -> list[tuple[int, str]]:
    """The line at which each Python block starts, and the block."""
    text = page.read_text()
    return [(text[: m.start(1)].count("\n"), m[1]) for m in re.finditer(r"^```python\n(.*?)^```", text, re.S | re.M)]


def import_peer(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Import a peer, or skip.

    The package of k-diffusion imports all that its training scripts need. What the page uses needs none of it: its
    modules are imported as they are published, their package and torchvision, of which nothing is called, stand empty.
    """
    if name != "k_diffusion":
        pytest.importorskip(name)
        return
    found = importlib.util.find_spec(name)
    if found is None:
        pytest.skip("could not import 'k_diffusion'")
    empty = ("k_diffusion", "torchvision", "torchvision.transforms", "torchvision.transforms.functional")
    for module in empty[: 1 if importlib.util.find_spec("torchvision") else None]:
        monkeypatch.setitem(sys.modules, module, ModuleType(module))
    sys.modules[name].__path__ = list(found.submodule_search_locations)
    for module in ("utils", "sampling", "external"):
        monkeypatch.setitem(sys.modules, f"{name}.{module}", importlib.import_module(f"{name}.{module}"))


TWICE = pytest.mark.nightly
"""The quickstart is README's first program, which test_readme.py runs; here it runs in `.ci/run` and at night."""


@pytest.mark.slow
@pytest.mark.parametrize(
    "page", [pytest.param(page, marks=TWICE if page.stem == "quickstart" else [], id=page.stem) for page in PAGES]
)
def test_the_page_runs(page, tmp_path, monkeypatch):
    if page.stem in PEERS:
        import_peer(PEERS[page.stem], monkeypatch)
    torch.set_default_dtype(torch.float32)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": page.stem}
    for line, program in programs(page):
        exec(compile("\n" * line + program, page, "exec", dont_inherit=True), names)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_lines_are_wrapped(page):
    long = [line for line in page.read_text().splitlines() if len(line) > 120 and not line.startswith("|")]
    assert not long


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_its_links_lead_somewhere(page):
    """Links to other pages of docs/, which are files beside it."""
    linked = re.findall(r"\]\(([\w./-]+\.md)(?:#[\w-]+)?\)", page.read_text())
    assert [name for name in linked if not (DOCS / name).is_file()] == []


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
    assert {page.stem for page in PAGES} >= RUN
    assert all(programs(page) for page in PAGES if page.stem in RUN)
