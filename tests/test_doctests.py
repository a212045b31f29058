"""The examples in the docstrings run as they stand, after `import torch, sdegen` and torch.manual_seed(0)."""

from __future__ import annotations

import doctest
import importlib
import inspect
from pathlib import Path
from runpy import run_path

import pytest
import torch

import sdegen

DOCS = Path(__file__).parent.parent / "docs"
public_names = run_path(str(DOCS / "docstrings.py"))["public_names"]  # what the pages show
NEEDS = {"digits": "sklearn", "FlowDequantiser": "zuko", "sdegen.interop.diffusers": "diffusers"}
NEEDS |= {"sdegen.plot": "matplotlib", "sdegen.interop.zuko": "zuko", "sdegen.interop.sklearn": "sklearn"}
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
FINDER = doctest.DocTestFinder(exclude_empty=True)


def examples(module: str, name: str) -> list[doctest.DocTest]:
    """The examples of one public object and of its methods; skips where what they need is not installed."""
    for key in (module, name):
        if key in NEEDS:
            pytest.importorskip(NEEDS[key])
    public = getattr(importlib.import_module(module), name)
    names = {"torch": torch, "sdegen": sdegen}
    source = inspect.getmodule(public)
    return [found for found in FINDER.find(public, f"{module}.{name}", source, globs=names) if found.examples]


@pytest.mark.parametrize(("module", "name"), public_names(), ids=lambda value: value.removeprefix("sdegen."))
def test_the_examples_run(module, name, capsys):
    found = examples(module, name)
    assert found, f"{module}.{name} has no example in its docstring."
    runner = doctest.DocTestRunner(optionflags=FLAGS, verbose=False)
    torch.set_default_dtype(torch.float32)  # what a user has; the fixture puts it back
    for example in found:
        torch.manual_seed(0)
        runner.run(example)
    assert runner.summarize(verbose=False).failed == 0, capsys.readouterr().out


def test_an_example_that_is_wrong_fails():
    """The law would hold for no examples at all, and for a runner that swallows what it finds."""

    def wrong() -> None:
        """Two and two.

        >>> 2 + 2
        5
        """

    runner = doctest.DocTestRunner(optionflags=FLAGS, verbose=False)
    for example in FINDER.find(wrong, "wrong", globs={}):
        runner.run(example, out=lambda text: None)
    assert runner.failures == 1
