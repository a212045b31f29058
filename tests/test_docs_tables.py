"""The tables of docs/: what they say is tried out, cell by cell."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import sdegen

DOCS = Path(__file__).parent.parent / "docs"
LAW = sdegen.GaussianMixture([[-1.0, 1.0], [1.0, -1.0]], 0.3)
PREDICTIONS = ("eps", "score", "data", "velocity", "v")
ASKS_AT_ITS_START = [
    *(sdegen.Adams(4), sdegen.StochasticAdams(4), sdegen.Ancestral(4), sdegen.DDIM(4), sdegen.DPMSolver(4)),
    *(sdegen.UniPC(4), sdegen.DEIS(4), sdegen.SASolver(50), sdegen.Heun(4)),
    *(sdegen.SDESolver(method, 15) for method in ("euler", "midpoint")),
    *(sdegen.ODESolver(method, steps=4) for method in ("euler", "midpoint")),
]
ASKS_AT_ITS_END = [
    *(sdegen.ODESolver(method, steps=4) for method in ("heun2", "rk4")),
    *(sdegen.ODESolver(m, rtol=0.1) for m in ("dopri5", "dopri8", "bosh3", "fehlberg2", "adaptive_heun")),
    *(sdegen.SDESolver(method, 15) for method in ("heun", "reversible_heun")),
]


def rows(page: str, first: str) -> list[list[str]]:
    """The rows of the table whose first header is `first`, cell by cell."""
    lines = iter((DOCS / page).read_text().splitlines())
    next(line for line in lines if line.startswith(f"| {first} |"))
    next(lines)
    table = []
    for line in lines:
        if not line.startswith("|"):
            break
        table.append([cell.strip() for cell in line.strip("|").split("|")])
    return table


def as_network(path: sdegen.GaussianPath, predicts: str) -> sdegen.ScoreModel:
    """The exact model, seen as a network that knows one prediction alone."""
    exact = LAW.model(path)
    return sdegen.ScoreModel(lambda x, t: getattr(exact, predicts)(x, t), path, predicts)


def works(model: sdegen.Model, solver: sdegen.Solver, u: tuple[float, float] | None = None) -> bool:
    """Whether it samples; a refusal for another reason than the network's end is a failure of the test."""
    try:
        x = sdegen.sample(model, (2, 2), solver, u=u)
    except ValueError as error:
        if "is singular for" not in str(error):
            raise
        return False
    assert bool(x.isfinite().all())
    return True


def kind(model: sdegen.Model) -> str:
    """The word of a cell, found by trying."""
    ends = [works(model, solver) for solver in (sdegen.Adams(4), sdegen.ODESolver("rk4", steps=2))]
    return {(True, True): "all", (True, False): "not at data", (False, False): "not at noise"}[ends[0], ends[1]]


CELLS = [
    pytest.param(path, predicts, said, id=f"{path.split('(')[0]}-{predicts}")
    for path, _, *cells in rows("which_prediction.md", "path")
    for predicts, said in zip(PREDICTIONS, cells, strict=True)
]


def test_all_combinations_are_there():
    assert len(CELLS) == 8 * 5
    header = re.search(r"^\| path \|.*$", (DOCS / "which_prediction.md").read_text(), re.M)
    assert re.findall(r'"(\w+)"', header[0]) == list(PREDICTIONS)


@pytest.mark.parametrize(("path", "predicts", "said"), CELLS)
def test_a_prediction_can_on_a_path_what_the_page_says(path, predicts, said):
    path = eval(path.strip("`"), vars(sdegen))
    model, (low, top), fixed = as_network(path, predicts), path.ends, sdegen.Adams(4)
    x = LAW.sample(2)
    assert kind(model) == said
    sdegen.loss(model, x)
    u = {"all": None, "not at data": (0.001, top), "not at noise": (low, 0.999)}[said]
    assert bool(sdegen.log_prob(model, x, fixed, u=u).isfinite().all())
    if said != "all":
        with pytest.raises(ValueError, match="is singular for"):
            sdegen.log_prob(model, x, fixed)
        assert works(model, sdegen.ODESolver("rk4", steps=2), (u[1], u[0]))
    for solver in (sdegen.SDESolver("euler", 4), sdegen.Ancestral(4)):
        assert works(model, solver, (0.999, low) if said == "not at noise" else None)


def test_the_clocks_of_the_paths():
    for name, clock, *_ in rows("which_prediction.md", "path"):
        ends = eval(name.strip("`"), vars(sdegen)).ends
        said = [float(number) for number in clock.split(" to ")]
        assert said == [round(end, 4) for end in ends]


def test_which_solvers_ask_where_they_arrive():
    """A denoiser cannot be asked at clean data."""
    model = as_network(sdegen.VPSDE(), "data")
    assert all(works(model, solver) for solver in ASKS_AT_ITS_START)
    assert not any(works(model, solver) for solver in ASKS_AT_ITS_END)


def test_the_solvers_of_the_page_can_be_made():
    """Every call in the second column of the table of purposes."""
    path = sdegen.DDPM.linear(100)
    names = {**vars(sdegen), "path": path}
    cells = [row[1] for row in rows("which_solver.md", "for")]
    calls = [call for cell in cells for call in re.findall(r"`(\w+\(.*?\))`", cell)]
    assert len(cells) == 13
    assert len(calls) >= 10
    assert all(isinstance(eval(call, names), sdegen.Solver) for call in calls)


TABLES = [("which_solver.md", "for", 1), ("which_number.md", "number", 0)]
TABLES += [(page.name, "theirs", 1) for page in sorted(DOCS.glob("coming_from_*.md"))]
ELSEWHERE = {"SdegenPipeline", "AdamsScheduler", "Azula"}  # of the interop, and of the page itself


@pytest.mark.parametrize(("page", "first", "column"), TABLES, ids=[page for page, *_ in TABLES])
def test_names_in_tables_are_public(page, first, column):
    """What is called in our column of a table like a class, or in the table of numbers at all, is sdegen's."""
    calls = {name for row in rows(page, first) for name in re.findall(r"`(\w+)\(", row[column])}
    names = {name for name in calls if name[0].isupper() or first == "number"}
    assert names
    assert names - ELSEWHERE <= set(vars(sdegen))
