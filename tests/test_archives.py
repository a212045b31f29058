"""The source archive: what it holds, and what its metadata say. `.ci/package` runs its tests in a fresh environment."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
from email import message_from_bytes
from importlib import metadata

import pytest
from test_packaging import EXTRAS, PROJECT, ROOT, tracked

FOLDERS = ("sdegen", "tests", "docs", "examples", "benchmarks", "notebooks", ".ci", ".github")


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """The archive's files by name, built from a copy of what git tracks, with the setuptools at hand."""
    if int(metadata.version("setuptools").split(".")[0]) < 77:
        pytest.skip("setuptools before 77 cannot read the licence")
    copy = tmp_path_factory.mktemp("checkout")
    for path in tracked():
        target = copy / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, target)
    code = "from setuptools import build_meta; build_meta.build_sdist('dist')"
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=copy, check=True, capture_output=True)
    (built,) = (copy / "dist").iterdir()
    with tarfile.open(built) as packed:
        return {
            member.name.partition("/")[2]: packed.extractfile(member).read()
            for member in packed.getmembers()
            if member.isfile()
        }


def test_everything_that_the_tests_read_is_in_it(archive):
    wanted = {str(path.relative_to(ROOT)) for path in tracked()}
    of_folders = {name for name in wanted if name.split("/")[0] in FOLDERS}
    assert {"tests/conftest.py", "tests/problems.py", "tests/networks/digits_unet.safetensors"} <= of_folders
    assert of_folders - set(archive) == set()
    outside = {"README.md", "CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "LICENSE", "pyproject.toml"}
    assert outside | {".pre-commit-config.yaml", "MANIFEST.in"} <= set(archive)
    assert not [name for name in archive if name.endswith(".pyc") or "__pycache__" in name]


def test_its_metadata_name_the_licence_and_the_extras(archive):
    said = message_from_bytes(archive["PKG-INFO"])
    assert said["License-Expression"] == PROJECT["project"]["license"] == "MIT"
    assert said.get_all("License-File") == ["LICENSE"]
    assert archive["LICENSE"].startswith(b"MIT License")
    assert not [line for line in said.get_all("Classifier") if line.startswith("License")]  # not beside an SPDX name
    assert set(said.get_all("Provides-Extra")) == set(EXTRAS)
    assert said["Requires-Python"] == ">=3.10"
    assert said["Description-Content-Type"] == "text/markdown"


def test_the_matrix_lists_every_python_that_is_declared():
    declared = {line.rpartition(" ")[2] for line in PROJECT["project"]["classifiers"] if ":: Python :: 3." in line}
    text = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    (line,) = [line for line in text.splitlines() if line.strip().startswith("python: [")]
    assert {name.strip(' "') for name in line.partition("[")[2].partition("]")[0].split(",")} == declared
    assert declared == {"3.10", "3.11", "3.12", "3.13"}
