"""Error against network calls: this library's solvers and its peers on exact targets, one command.

    OMP_NUM_THREADS=1 python benchmarks/accuracy.py [--targets ring8 gmm16 narrow9] [--calls 5 8 10 15 20 30 50]
        [--solvers NAME ...] [--no-peers] [--reproduce] [--learned] [--out benchmarks/figures/accuracy.png]

For every target one table of the solvers in `SOLVERS`: the error (see `targets`) at clean data, and its ratio to the
best and to the third-best published peer variant (`published`), chosen anew at every number of calls; the last column
has the geometric means of both ratios. Then the installed peers are run: their best at every number of calls stands
below the table, and `--reproduce` compares every published row of an installed package with what it measures here.
`--learned` does trained networks instead, see `learned`. Nothing here is timed.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from peers import Field, Peer, ode_peers
from published import PUBLISHED, best
from targets import CALLS, POINTS, TARGETS, Fine, error, geometric_mean, latents

import sdegen

Solvers = Mapping[str, Callable[[int], sdegen.Solver]]

SOLVERS: Solvers = {  # the solver for a number of network calls
    "Adams": lambda calls: sdegen.Adams(calls),
    "UniPC 2": lambda calls: sdegen.UniPC(calls),
    "DPM-Solver++ 2M": lambda calls: sdegen.DPMSolver(calls),
    "DEIS 3": lambda calls: sdegen.DEIS(calls, 3),
    "Heun (EDM)": lambda calls: sdegen.Heun(max((calls + 1) // 2, 1)),
    "DDIM": lambda calls: sdegen.DDIM(calls),
    "ODESolver euler": lambda calls: sdegen.ODESolver("euler", steps=calls),
    "ODESolver midpoint": lambda calls: sdegen.ODESolver("midpoint", steps=max(calls // 2, 1)),
    "ODESolver rk4": lambda calls: sdegen.ODESolver("rk4", steps=max(calls // 4, 1)),
}


class Measured(NamedTuple):
    """One solve.

    Attributes:
        name: of the solver or peer.
        allowed: network calls it could make.
        calls: network calls it made.
        error: see `targets`; inf where it failed.
    """

    name: str
    allowed: int
    calls: int
    error: float


def ours(fine: Fine, solvers: Solvers, calls: Sequence[int]) -> list[Measured]:
    """Each solver at each number of calls, at clean data."""
    rows = []
    for name, solver in solvers.items():
        for allowed in calls:
            try:
                solution = sdegen.solve(fine.model, fine.x_T, solver(allowed))
            except sdegen.NonFiniteError:
                rows.append(Measured(name, allowed, allowed, float("inf")))
                continue
            rows.append(Measured(name, allowed, solution.calls, error(solution.x, fine.at_data)))
    return rows


def theirs(fines: Mapping[str, Fine], peers: Iterable[Peer], calls: Sequence[int]) -> list[Measured]:
    """Each peer on a path there is a model for, at each number of calls, where it natively ends."""
    rows = []
    for peer, allowed in itertools.product(peers, calls):
        if peer.path in fines:
            fine = fines[peer.path]
            field = Field(fine.model)
            try:
                x, u = peer.run(field, fine.x_T, allowed)
            except (ArithmeticError, AssertionError, IndexError, RuntimeError, TypeError, ValueError) as failure:
                print(f"({peer.name} at {allowed} calls: {type(failure).__name__}: {str(failure)[:80]})")
                continue
            if field.calls <= allowed:
                rows.append(Measured(peer.name, allowed, field.calls, error(x, fine.at(u))))
    return rows


def on_target(name: str, points: int = POINTS) -> dict[str, Fine]:
    """Fine solutions of an exact target on the paths that the peers want, from the same normals."""
    target = TARGETS[name]()
    x_T = latents((points, *target.event_shape))
    return {"VPSDE": Fine(target.model(sdegen.VPSDE()), x_T), "CondOT": Fine(target.model(sdegen.CondOT()), x_T)}


def ratios(target: str, rows: Iterable[Measured], rank: int) -> dict[int, float]:
    """Error over that of the rank-th best published variant, for the numbers of calls that have one."""
    found = {row.allowed: (row.error, best(target, row.allowed, rank)) for row in rows}
    return {calls: own / peer[1] for calls, (own, peer) in found.items() if peer is not None}


def table(target: str, rows: Sequence[Measured], calls: Sequence[int]) -> str:
    """A Markdown table: error (ratio to the best, to the third-best), and the geometric means of the ratios."""
    lines = [
        f"| {target} | " + " | ".join(f"{n} calls" for n in calls) + " | geometric mean |",
        "|---" * (len(calls) + 2) + "|",
    ]
    for name in dict.fromkeys(row.name for row in rows):
        mine = {row.allowed: row for row in rows if row.name == name}
        first, third = ratios(target, mine.values(), 1), ratios(target, mine.values(), 3)
        cells = [
            f"{mine[n].error:.2e}" + (f" ({first[n]:.2f}, {third[n]:.2f})" if n in third else "")
            for n in calls
            if n in mine
        ]
        means = f"{geometric_mean(first.values()):.2f}, {geometric_mean(third.values()):.2f}"
        lines.append(f"| {name} | " + " | ".join(cells) + f" | {means} |")
    return "\n".join(lines)


def best_rows(rows: Iterable[Measured], calls: Sequence[int]) -> dict[int, Measured]:
    """The best of the rows at each number of calls."""
    rows = list(rows)
    return {n: min(at, key=lambda row: row.error) for n in calls if (at := [r for r in rows if r.allowed == n])}


def reproduced(target: str, rows: Sequence[Measured]) -> str:
    """Every published row of an installed package beside what was measured here."""
    measured = {(row.name, row.allowed): row.error for row in rows}
    lines = []
    for calls, published in PUBLISHED[target].items():
        for name, figure in published:
            if (name, calls) in measured:
                own = measured[name, calls]
                digits = 2 if target == "narrow9" else 1
                same = f"{own:.{digits}e}" == f"{figure:.{digits}e}"
                lines.append(
                    f"  {calls:3d} {name:45s} published {figure:.3g}, here {own:.3g}: {'same' if same else 'OTHER'}"
                )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=list(TARGETS))
    parser.add_argument(
        "--calls", nargs="+", type=int, help="by default 5 8 10 15 20 30 50, or 5 10 20 50 for networks"
    )
    parser.add_argument("--solvers", nargs="+", choices=SOLVERS, default=list(SOLVERS))
    parser.add_argument("--points", type=int, default=POINTS)
    parser.add_argument("--no-peers", action="store_true")
    parser.add_argument("--reproduce", action="store_true")
    parser.add_argument("--learned", action="store_true")
    parser.add_argument("--out", type=Path, help="where the picture goes")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    solvers = {name: SOLVERS[name] for name in options.solvers}
    peers = [] if options.no_peers else ode_peers()
    if options.learned:
        from learned import report

        report(solvers, peers, *([options.calls] if options.calls else []))
        return
    calls = options.calls or CALLS
    everything = {}
    for target in options.targets:
        fines = on_target(target, options.points)
        mine, others = ours(fines["VPSDE"], solvers, calls), theirs(fines, peers, calls)
        everything[target] = (mine, others)
        print("\n" + table(target, mine, calls))
        for n, row in best_rows(others, calls).items():
            print(f"  best installed peer at {n}: {row.name} ({row.calls} calls) {row.error:.2e}", flush=True)
        if options.reproduce:
            print(reproduced(target, others))
    if options.out is not None:
        from picture import draw

        draw(everything, options.out)


if __name__ == "__main__":
    main()
