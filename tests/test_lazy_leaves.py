"""sdegen.nets and its like are there after `import sdegen`, and are loaded when they are first asked for."""

from __future__ import annotations

import subprocess
import sys

import pytest

import sdegen

LEAVES = ("datasets", "interop", "nets", "plot")
HEAVY = ("accelerate", "diffusers", "matplotlib", "safetensors", "sklearn", "tqdm.auto", "zuko")


def test_a_leaf_needs_no_import_of_its_own_and_loads_nothing_heavy():
    code = (
        "import importlib, sys, sdegen\n"
        f"assert not set(sys.modules) & {set(HEAVY)}, 'heavy'\n"  # torchsde loads tqdm itself, but not tqdm.auto
        f"for name in {LEAVES}:\n"
        "    assert f'sdegen.{name}' not in sys.modules, name\n"
        "    assert name in dir(sdegen), name\n"
        "    leaf = getattr(sdegen, name)\n"
        "    assert leaf is importlib.import_module(f'sdegen.{name}') is getattr(sdegen, name), name\n"
        f"    assert not set(sys.modules) & {set(HEAVY)}, name\n"
        "assert 'sdegen.interop.diffusers' not in sys.modules\n"
        "print(sdegen.interop.diffusers.__name__, 'diffusers' in sys.modules, 'ScoreModel' in dir(sdegen))\n"
    )
    said = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert said == "sdegen.interop.diffusers False True\n"


def test_a_name_that_is_not_there_is_refused():
    with pytest.raises(AttributeError, match=r"^module 'sdegen' has no attribute 'net'$"):
        _ = sdegen.net
    with pytest.raises(AttributeError, match=r"^module 'sdegen.interop' has no attribute 'jax'$"):
        _ = sdegen.interop.jax
    assert not set(LEAVES) & set(sdegen.__all__)  # a star would load them
