"""What is packaged, declared and written beside the code."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

import sdegen

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
EXTRAS = PROJECT["project"]["optional-dependencies"]
DISTRIBUTIONS = {"sklearn": "scikit-learn"}  # where a module is called otherwise than what one installs
HOSTS = [f"{name}.org" for name in ("pypi", "pythonhosted", "anaconda", "conda-forge", "download.pytorch", "npmjs")]


def names(requirements: list[str]) -> set[str]:
    return {re.match(r"[\w-]+", requirement)[0] for requirement in requirements}


def imported(path: Path) -> set[str]:
    """What a file cannot be imported without, by the name one installs; imports inside functions are left out."""
    modules = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            modules.add(node.module)
    tops = {module.split(".")[0] for module in modules} - set(sys.stdlib_module_names)
    own = {"sdegen", *(found.stem for found in (ROOT / "tests").rglob("*.py"))}
    return {DISTRIBUTIONS.get(top, top) for top in tops - own}


def tracked() -> list[Path]:
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a checkout")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [ROOT / name for name in listed.split("\0") if name and (ROOT / name).is_file()]


@pytest.mark.parametrize(("folder", "extra"), [("sdegen", None), ("examples", "examples"), ("tests", "test")])
def test_what_is_imported_is_declared(folder, extra):
    declared = names(PROJECT["project"]["dependencies"] + EXTRAS.get(extra, []))
    needed = {str(path): imported(path) for path in (ROOT / folder).rglob("*.py")}
    assert {path: missing for path, needs in needed.items() if (missing := needs - declared)} == {}


def test_the_extras_are_those_that_are_written_about():
    texts = [(ROOT / name).read_text() for name in ("README.md", "CONTRIBUTING.md", ".pre-commit-config.yaml")]
    texts += [path.read_text() for path in (ROOT / "sdegen").rglob("*.py")]
    written = re.findall(r"(?:sdegen|\.)\[(\w+(?:,\w+)*)\]['\"]", "\n".join(texts))
    assert {extra for group in written for extra in group.split(",")} == set(EXTRAS)


def test_an_extra_brings_what_its_users_need():
    assert names(EXTRAS["train"]) == {"accelerate", "safetensors", "tqdm"}
    assert names(EXTRAS["plot"]) == {"matplotlib"}
    assert {"sphinx", "furo", "myst-nb"} <= names(EXTRAS["docs"])
    assert names(EXTRAS["train"] + EXTRAS["plot"]) <= names(EXTRAS["examples"])
    assert names(EXTRAS["train"] + EXTRAS["plot"]) <= names(EXTRAS["test"])


def test_the_readme_runs_the_tests_in_parallel_with_what_the_extra_brings():
    (command,) = re.findall(r"^python3 -m venv .*pytest.*$", (ROOT / "README.md").read_text(), re.M)
    assert '".[test]"' in command
    assert " -n auto " in command
    assert {"pytest", "pytest-timeout", "pytest-xdist", "safetensors"} <= names(EXTRAS["test"])
    assert "torchcfm" not in names(EXTRAS["test"] + EXTRAS["dev"])  # it brings a torchvision that breaks diffusers


def test_nothing_is_pinned_for_users_and_every_tool_is_for_ci():
    lines = [line.split("#")[0].strip() for line in (ROOT / ".ci" / "constraints.txt").read_text().splitlines()]
    pins = dict(line.split("==") for line in lines if line)
    assert {"torch", "ruff", "mypy", "coverage", "pytest", "pytest-xdist", "accelerate", "safetensors"} <= set(pins)
    asked = [*PROJECT["project"]["dependencies"], *(one for extra in EXTRAS.values() for one in extra)]
    assert not [requirement for requirement in asked if "==" in requirement]
    assert "torch>=2.4" in asked


def test_the_version_is_one_and_can_be_read():
    assert re.fullmatch(r"\d+\.\d+\.\d+\S*", sdegen.__version__)
    assert metadata.version("sdegen") == sdegen.__version__
    (cited,) = re.findall(r"^version: (\S+)$", (ROOT / "CITATION.cff").read_text(), re.M)
    assert cited == sdegen.__version__
    assert f"\n## {sdegen.__version__} - " in (ROOT / "CHANGELOG.md").read_text()


def test_the_types_are_packaged():
    packages = PROJECT["tool"]["setuptools"]
    assert "py.typed" in packages["package-data"]["sdegen"]
    assert (Path(sdegen.__file__).parent / "py.typed").is_file()
    assert packages["packages"]["find"]["include"] == ["sdegen*"]
    folders = [path.parent for path in (ROOT / "sdegen").rglob("*.py")]
    assert all((folder / "__init__.py").is_file() for folder in folders)


def test_no_file_names_the_host_of_a_package_registry():
    texts = {path: path.read_bytes().decode("utf-8", "ignore") for path in tracked()}
    assert [(str(path), host) for path, text in texts.items() for host in HOSTS if host in text] == []
