"""Samples drawn by several processes at once, or by processes that are killed: the arguments of evaluated.py."""

from __future__ import annotations

import evaluated

import sdegen

SOLVER = sdegen.SDESolver("euler", steps=4)
SETTINGS = {"batch_size": 3, "seed": 5}


def draw(directory: str, chunks: int) -> sdegen.Samples:
    """The samples of the whole, the last chunk smaller than the rest."""
    model, data = evaluated.problem(chunks)
    return sdegen.sample_many(model, data.shape, SOLVER, directory=directory, **SETTINGS)


if __name__ == "__main__":
    evaluated.work = draw
    evaluated.main()
