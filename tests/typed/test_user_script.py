"""The script that mypy reads as a user's names everything there is, and runs."""

from __future__ import annotations

import ast
import runpy
from pathlib import Path

import torch

import sdegen

SCRIPT = Path(__file__).parent / "user_script.py"


def test_it_names_everything_that_sdegen_exports():
    nodes = [node for node in ast.walk(ast.parse(SCRIPT.read_text())) if isinstance(node, ast.Attribute)]
    named = {node.attr for node in nodes if isinstance(node.value, ast.Name) and node.value.id == "sdegen"}
    assert set(sdegen.__all__) - named == set()


def test_it_runs(capsys):
    torch.set_default_dtype(torch.float32)
    runpy.run_path(str(SCRIPT))["main"]()
    said = capsys.readouterr().out
    assert f"sdegen {sdegen.__version__}" in said
    assert "refused, as it should be" in said
