"""Sphinx's settings for these pages, which need no network: `python -m sphinx -W -b html docs docs/_build/html`.

Formulas in pages are TeX, set by the MathJax files that `sphinx-mathjax-offline` lays beside the pages; those in
docstrings are plain text, which `docstrings.py` beside this file keeps as it stands.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import docstrings  # noqa: E402

import sdegen  # noqa: E402

if TYPE_CHECKING:
    from sphinx.application import Sphinx

project = "sdegen"
author = copyright = "the authors of sdegen"
version = release = sdegen.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "sphinx-mathjax-offline",  # after mathjax, whose address it sets to its own files
    "myst_nb",
]
exclude_patterns = ["_build"]
nitpicky = True

myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # the notebooks' stored outputs are shown; CI runs them apart

autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autosummary_generate = False
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_attr_annotations = False
smartquotes_action = "D"  # dashes; in docstrings, quotation marks are code
python_maximum_signature_line_length = 88

html_theme = "furo"
html_title = f"sdegen {release}"
html_static_path = ["_static"]
html_css_files = ["sdegen.css"]
html_copy_source = False
html_show_sourcelink = False


def copy_notebooks() -> None:
    """Lay the notebooks beside the pages, where Sphinx looks; git ignores the copies."""
    to = HERE / "notebooks"
    to.mkdir(exist_ok=True)
    for notebook in sorted((HERE.parent / "notebooks").glob("*.ipynb")):
        shutil.copy2(notebook, to / notebook.name)


def setup(app: Sphinx) -> None:
    """Hand the docstrings over as reStructuredText."""
    copy_notebooks()
    docstrings.setup(app)
