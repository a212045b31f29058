"""The house itself: layers, the README's solver table, imports, and the example run small."""

from __future__ import annotations

import ast
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

import sdegen
from sdegen.solvers import ODE_METHODS, SCHEMES, SDE_METHODS

ROOT = Path(__file__).parent.parent
LAYERS = [  # a file imports only from rows above its own
    {"_version", "_shapes", "_fingerprint", "_derivatives", "_files"},
    {"_checks", "_container"},
    {"paths", "models", "training", "likelihoods"},
    {"paths.priors", "paths.consistency", "paths.inverse", "models.preconditioned", "models.standardised", "nets"},
    {"paths.gaussian"},
    {"paths.diffusions", "paths.flows"},
    {"paths.chain"},
    {"models.base", "models.conditions", "models.identity", "models.laws"},
    {"models.products", "models.wrapped", "models.weights"},
    {"models.exact", "models.model", "models.guidance", "models.watched", "models.masked"},
    {"models.observed", "checkpoints"},
    {"_arguments"},
    {"solvers.noise", "solvers.divergence", "solvers.grids"},
    {"solvers.base"},
    {"journal"},
    {"solvers.brownian", "solvers.persample", "solvers.loop", "solvers.engines"},
    {"solvers.ancestral", "solvers.scheme"},
    {"solvers.polynomials"},
    {"solvers.densities"},
    {"solvers.ode", "solvers.multistep", "solvers.onestep", "solvers.exponential", "solvers.renoised"},
    {
        "solvers.sde",
        "solvers.adams",
        "solvers.dpm",
        "solvers.unipc",
        "solvers.deis",
        "solvers.sasolver",
        "solvers.heun",
    },
    {"solvers.refined", "solvers.registry"},
    {"solvers"},
    {"callbacks", "_solving"},
    {"sampling"},
    {"bulk"},
    {"reflow", "comparison", "likelihoods.gradients", "likelihoods.decoders", "likelihoods.gap"},
    {"tuning"},
    {"likelihoods.density", "likelihoods.chain"},
    {"likelihoods.variational", "likelihoods.entropy", "likelihoods.weighted", "training.hybrid"},
    {"likelihoods.continuous", "likelihoods.quantised"},
    {"likelihoods.evaluation", "likelihoods.posterior", "datasets"},
    {"models.latent"},
    {"training.couplings", "training.times"},
    {"training.losses", "training.batches", "training.ratios", "training.resuming"},
    {"training.fitting"},
    {"plot.frame"},
    {"plot.points", "plot.curves", "plot.maps", "plot.images", "plot.errors"},
    {"plot.film"},
    {"plot"},
    {"interop.adapted"},
    {"interop.edm", "interop.flow_libraries", "interop.zuko", "interop.sklearn", "interop.diffusers.schedules"},
    {"interop.diffusers.loading", "interop.diffusers.spacings", "interop.diffusers.storing"},
    {"interop.diffusers.adams_scheduler", "interop.diffusers.pipelines"},
    {"interop.diffusers"},
    {"interop"},
    {"sdegen"},
]
LEAVES = {"nets", "datasets", "interop", "plot"}
ENGINES = {"torchsde", "torchdiffeq"}


def modules() -> dict[str, Path]:
    package = ROOT / "sdegen"
    named = {}
    for path in package.rglob("*.py"):
        parts = list(path.relative_to(package).with_suffix("").parts)
        parts = parts[:-1] if parts[-1] == "__init__" else parts
        named[".".join(parts) or "sdegen"] = path
    return named


def imports_of(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name.removeprefix("sdegen.") in modules() else node.module for name in names}
    return found


def test_files_import_only_from_layers_above():
    level = {name: i for i, row in enumerate(LAYERS) for name in row}
    assert set(level) == set(modules())
    for name, path in modules().items():
        for imported in imports_of(path):
            if imported.split(".")[0] == "sdegen":
                other = imported.removeprefix("sdegen.")
                assert level[other] < level[name], f"{name} imports {other}"
                folder = other.split(".")[0]
                users = {folder, "sdegen"}  # that one under TYPE_CHECKING alone, see test_lazy_leaves.py
                assert folder not in LEAVES or name.split(".")[0] in users, f"{name} imports the leaf {other}"
            if imported.split(".")[0] in ENGINES:
                assert name.startswith("solvers."), f"{name} imports an engine"


def test_no_module_has_the_name_of_an_export():
    """sdegen.entropy_form is the function, whatever was imported last."""
    names = {part for name in modules() for part in name.split(".")}
    assert not names & set(sdegen.__all__)


def test_every_export_is_there_once():
    assert len(set(sdegen.__all__)) == len(sdegen.__all__)
    for name in sdegen.__all__:
        assert getattr(sdegen, name) is not None


def test_no_test_file_is_too_long_and_folders_match():
    folders = {path.name for path in (ROOT / "sdegen").iterdir() if path.is_dir() and path.name != "__pycache__"}
    for path in (ROOT / "tests").rglob("test_*.py"):
        assert len(path.read_text().splitlines()) <= 400, path
        if path.parent != ROOT / "tests":
            assert path.parent.name in folders | {"typed", "devices"}, path


def test_the_readme_table_is_the_registry():
    rows = {}
    for line in (ROOT / "README.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        match = re.fullmatch(r"`(SDESolver|ODESolver|Ancestral|DDIM)\(?\"?(\w*)\"?.*`", cells[0])
        if match and len(cells) == 5:
            rows[match[1], match[2]] = cells[1:]
        elif cells[0].strip("`") in SCHEMES:
            rows[cells[0].strip("`"), ""] = cells[1:]
    expected = {}
    for name, method in SDE_METHODS.items():
        order = f"{method.order} ({method.strong} strong)"
        expected["SDESolver", name] = ["SDE", order, f"{method.calls}", method.when]
    for name, method in ODE_METHODS.items():
        expected["ODESolver", name] = ["ODE", f"{method.order}", f"{method.calls}", method.when]
    for name, scheme in SCHEMES.items():
        numbers = ["the solver's" if n is None else f"{n}" for n in (scheme.order, scheme.calls)]
        expected[name, ""] = [scheme.equation, *numbers, scheme.when]
    for chain in ("Ancestral", "DDIM"):
        assert rows.pop((chain, "steps"))[:3] == ["the chain", "1", "1"]
    assert rows == expected


def test_import_is_light_and_touches_no_global_state():
    code = (
        "import random, warnings, logging, numpy, torch\n"
        "before = (torch.get_rng_state().sum().item(), torch.get_default_dtype(), torch.is_grad_enabled(),\n"
        "          numpy.random.get_state()[1].sum(), random.getstate(), len(warnings.filters), logging.root.level)\n"
        "import torchsde, torchdiffeq\n"
        "filters = len(warnings.filters)\n"
        "import sys, sdegen\n"
        "after = (torch.get_rng_state().sum().item(), torch.get_default_dtype(), torch.is_grad_enabled(),\n"
        "         numpy.random.get_state()[1].sum(), random.getstate(), len(warnings.filters), logging.root.level)\n"
        "assert before[:5] + before[6:] == after[:5] + after[6:] and after[5] == filters\n"
        "others = ('matplotlib', 'sklearn', 'tqdm.auto', 'diffusers', 'accelerate', 'zuko', 'safetensors')\n"
        "for heavy in (*others, 'sdegen.nets', 'sdegen.datasets', 'sdegen.interop', 'sdegen.plot'):\n"
        "    assert heavy not in sys.modules, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


EXAMPLES = {
    "sde_vs_ode": (
        ["plane.png", "trajectories.png", "sde_beside_ode.gif", "digits.png"],
        ["SDE euler", "SDE Adams", "ODE dopri5", "ODE Adams", "Ancestral", "bits/dim"],
    ),
    "ddpm_as_special_case": (
        ["ddpm_digits.png", "ddpm_convergence.png"],
        ["chain, 50 steps", "DDIM, 50 steps", "bound, levels", "bound, dequantised", "density, dequantised", "0.74941"],
    ),
    "flow_matching": (
        ["flow_trajectories.png", "flow_digits.png"],
        ["straightness S", "OT flow", "reflow", "diffusion as flow", "flow by VP's SDE"],
    ),
    "likelihood": (
        ["likelihood_density.png", "likelihood_bits.png", "likelihood_ood.png"],
        ["integrates to", "solver_error", "prior_gap", "given label", "95 % interval", "latents halved", "AUROC"],
    ),
    "guidance": (
        [f"guidance_{name}.png" for name in ("labels", "inpainting", "sdedit", "posterior")],
        ["held-out ones right", "scale 0", "apart within a class", "replacement", "u = 0.7", "another exact sample"],
    ),
    "variational": (
        [f"variational_{name}.png" for name in ("digits", "corrected", "ring", "gan")],
        ["log p, PPCA", "IWAE_64", "after", "8 components weigh", "mean length of the pieces", "features apart"],
    ),
    "cnf": (["flow_cnf.png"], ["planar: log-density", "Hamiltonian: energy"]),
    "patches": (["patches.png"], ["energy distance to", "training patches", "of the Gaussian's", "side by side"]),
}


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", EXAMPLES)
def test_the_quick_examples_run_and_write_their_pictures(name, tmp_path, capsys):
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    importlib.import_module("torch").set_default_dtype(importlib.import_module("torch").float32)
    example.main([*(["--quick"] if name != "cnf" else []), "--out", str(tmp_path)])
    said, (pictures, labels) = capsys.readouterr().out, EXAMPLES[name]
    for picture in pictures:
        assert (tmp_path / picture).stat().st_size > 10_000
    for label in labels:
        assert label in said
    if name == "sde_vs_ode":
        ours, theirs = (float(re.search(p, said)[1]) for p in (r"given the label (\S+)", r"Gaussian: (\S+)"))
        assert ours < theirs
    if name == "guidance":
        rows = ("held-out", "scale 0", "scale 1", "scale 2")
        held_out, *read = (float(re.search(rf"\n{row}  +(\S+)  ", said)[1]) for row in rows)
        assert held_out > 0.95
        assert read[0] < 0.3 < 0.7 < read[1] <= read[2]
        assert float(re.findall(r"\nmmps [\d. ]* (\d\S*)\n", said)[-1]) < 0.3  # the last table's
    if name == "likelihood":
        mass, of_noise = (
            float(re.search(p, said)[1]) for p in (r"integrates to (\S+)", r"noise .*\d   (\S+) \+-.*\+-")
        )
        (ours, high), (low, theirs) = (
            [float(b) for b in re.search(rf"{p} .*\d   (\S+) to (\S+)", said).groups()] for p in ("label", "Gaussian")
        )
        assert abs(mass - 1) < 0.02
        assert ours < high < low < theirs
        assert of_noise > 0.95
    if name == "variational":
        gap, gained, *bounds = (
            [float(number) for number in re.search(rf"\n{p}", said).groups()]
            for p in (
                r"difference, paired +(\S+)",
                r"score .* (\S+) to (\S+) +\S+",
                *(rf"{prior} +(\S+)  \S+ to \S+ +(\S+)" for prior in (r"N\(0, I\)", "mixture", "score")),
            )
        )
        assert -1 < gap[0] < 0.1
        assert gained[1] > 0  # the 95 % interval of the score prior's ELBO beyond that of N(0, I)
        assert all(elbo < iwae for elbo, iwae in bounds)
    if name == "patches":
        assert float(re.search(r"\ndifference .* to (\S+)", said)[1]) < 0


def test_every_example_is_run():
    elsewhere = {"distributed"}  # by test_distributed.py, in several processes
    assert {path.stem for path in (ROOT / "examples").glob("*.py")} == set(EXAMPLES) | elsewhere
