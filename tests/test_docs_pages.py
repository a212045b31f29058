"""The pages of docs/: every public name stands on one of them, and they build without a warning or a network."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from runpy import run_path

import pytest

import sdegen

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = run_path(str(DOCS / "docstrings.py"))
converted, links, public_names = (PAGES[name] for name in ("converted", "links", "public_names"))
LOADED = {"script": ["src"], "img": ["src", "srcset"], "link": ["href"], "source": ["src", "srcset"], "iframe": ["src"]}


def command() -> str:
    """How to build the pages, as index.md prints it."""
    found = re.search(r"^python -m sphinx .*", (DOCS / "index.md").read_text(), re.M)
    assert found
    return found[0]


def test_every_public_name_stands_on_exactly_one_page():
    pages = "".join(page.read_text() for page in sorted((DOCS / "api").glob("*.md")))
    shown = Counter(re.findall(r"^\.\. auto(?:class|function|exception):: (\w+)$", pages, re.M))
    assert shown == Counter(name for name in sdegen.__all__ if name != "__version__")
    leaves = {module for module, _ in public_names()} - {"sdegen"}
    assert Counter(re.findall(r"^\.\. automodule:: ([\w.]+)$", pages, re.M)) == Counter(leaves)


def test_the_tables_hold_the_names_of_their_page():
    """autosummary's list above, and the entries below it, in one order."""
    for page in sorted((DOCS / "api").glob("*.md")):
        text = page.read_text()
        listed = re.findall(r"^   (\w+)$", text, re.M)
        assert listed == re.findall(r"^\.\. auto(?:class|function|exception):: (\w+)$", text, re.M), page.name


def test_index_names_every_page():
    lists = re.findall(r"```\{toctree\}\n(.*?)```", (DOCS / "index.md").read_text(), re.S)
    named = [line for block in lists for line in block.splitlines() if re.fullmatch(r"[a-z_]+", line)]
    assert not {page.stem for page in DOCS.glob("*.md")} - {"index", *named}
    assert len(named) == len(set(named))


def test_the_command_is_the_contributors_too():
    assert command() in (ROOT / "CONTRIBUTING.md").read_text()


def test_a_docstring_becomes_restructured_text():
    lines = """A formula with B in (B, *event), |x|, and *this*.

    x_t = alpha x + sigma * eps

It is `sdegen.Adams`, `Adams` or `x_`.

References:
    A title, Somebody,
    2020, arXiv:2006.11239.
    Another, 2021."""
    link = ":py:obj:`Adams <sdegen.Adams>`"
    found = converted(lines.splitlines(), links("sdegen.Heun"))
    assert (
        "\n".join(found).rstrip()
        == rf"""A formula with B in (B, \*event), \|x\|, and *this*.

.. code-block:: text

    x_t = alpha x + sigma * eps

It is {link}, {link} or ``x_``.

References:
    - A title, Somebody, 2020, `arXiv:2006.11239 <https://arxiv.org/abs/2006.11239>`__.
    - Another, 2021."""
    )


def test_a_program_in_a_docstring_is_python():
    lines = ["Write your own::", "", "    class Mine(sdegen.Solver):", "        pass"]
    assert converted(lines, {})[:3] == ["Write your own:", "", ".. code-block:: python"]


def test_a_leaf_has_names_of_its_own():
    assert "two_moons" in links("sdegen.datasets.swiss_roll")
    assert "two_moons" not in links("sdegen.sample")


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The pages, built as index.md says, but elsewhere and with no way out: every proxy is this machine's port 9."""
    for package in ("sphinx", "furo", "myst_nb", "sphinx-mathjax-offline", "diffusers"):
        pytest.importorskip(package)
    to = tmp_path_factory.mktemp("pages") / "html"
    *words, out = command().split()[1:]
    assert out == "docs/_build/html"
    nowhere = dict.fromkeys(("http_proxy", "https_proxy", "all_proxy"), "http://127.0.0.1:9")
    environment = {**os.environ, **nowhere, "PYTHONPATH": str(ROOT)}
    run = subprocess.run(
        [sys.executable, *words, str(to)], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    return to


class Loaded(HTMLParser):
    """The addresses that a browser loads with a page."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.feed(page.read_text())

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.addresses += [value for name, value in attributes if value and name in LOADED.get(tag, [])]


def pages_and_styles(built: Path) -> tuple[list[Path], list[Path]]:
    return sorted(built.rglob("*.html")), sorted(built.rglob("*.css"))


@pytest.mark.slow
def test_the_pages_ask_no_host(built):
    pages, styles = pages_and_styles(built)
    assert len(pages) > 15
    for page in pages:
        for address in Loaded(page).addresses:
            assert not re.match(r"(https?:)?//", address), f"{page.name} loads {address}"
            file = address.split("?")[0].split("#")[0]
            assert address.startswith("data:") or (page.parent / file).exists(), f"{page.name} lacks {address}"
    for style in styles:
        assert not re.search(r"url\(\s*['\"]?(https?:)?//|@import\s+['\"]?http", style.read_text()), style.name


@pytest.mark.slow
def test_formulas_are_set_by_files_beside_the_pages(built):
    page = built / "notebooks" / "01_ddpm_limit_to_likelihood.html"
    scripts = [address.split("?")[0] for address in Loaded(page).addresses if "mathjax" in address.lower()]
    assert scripts == ["../_static/mathjax/tex-chtml.js"]
    fonts = built / "_static" / "mathjax" / "output" / "chtml" / "fonts" / "woff-v2"
    assert (fonts / "MathJax_Math-Italic.woff").stat().st_size > 1000


@pytest.mark.slow
def test_every_public_name_has_its_place(built):
    text = "".join(page.read_text() for page in sorted((built / "api").glob("*.html")))
    places = Counter(re.findall(r'<dt class="[^"]*" id="([\w.]+)"', text))
    wanted = {f"{module}.{name}" for module, name in public_names()}
    assert {name: places[name] for name in wanted} == dict.fromkeys(wanted, 1)


@pytest.mark.slow
def test_formulas_of_docstrings_and_examples_are_kept(built):
    text = re.sub(r"<[^>]*>", "", (built / "api" / "paths.html").read_text())
    assert "alpha^2 = exp(-B)       sigma^2 = 1 - exp(-B)" in text
    assert "&gt;&gt;&gt; path, t = sdegen.CondOT(), torch.tensor(0.25)" in text
