"""The picture of error against network calls: peers in grey, the published best as dots, our solvers in colour."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib as mpl
from accuracy import Measured
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from published import PUBLISHED

mpl.use("Agg")


def draw(everything: Mapping[str, tuple[Sequence[Measured], Sequence[Measured]]], out: Path) -> None:
    """One panel for each target of (our rows, the peers' rows), saved as a PNG."""
    figure = Figure(figsize=(4.2 * len(everything), 4.2), layout="constrained")
    panels = figure.subplots(1, len(everything), squeeze=False)[0]
    for panel, (target, (mine, others)) in zip(panels, everything.items(), strict=True):
        _lines(panel, others, color="0.82", linewidth=0.7)
        calls = sorted({row.allowed for row in mine} & set(PUBLISHED[target]))
        panel.plot(calls, [PUBLISHED[target][n][0][1] for n in calls], "ko", markersize=5, label="best peer of all")
        panel.plot(calls, [PUBLISHED[target][n][2][1] for n in calls], "k_", markersize=8, label="third-best")
        _lines(panel, mine, named=True, linewidth=1.8)
        panel.set(xscale="log", yscale="log", title=target, xlabel="network calls")
        panel.set_ylim(bottom=0.3 * min(row.error for row in mine), top=3)
        panel.set_xticks(calls, [str(n) for n in calls])
        panel.minorticks_off()
    panels[0].set_ylabel("RMS error of the best 98 %")
    panels[0].legend(fontsize=8)
    out.parent.mkdir(parents=True, exist_ok=True)
    drawn = BytesIO()
    figure.savefig(drawn, dpi=90)
    Image.open(drawn).convert("RGB").quantize(48).save(out, optimize=True)  # a third of the size


def _lines(panel: Axes, rows: Sequence[Measured], named: bool = False, **style: Any) -> None:
    for name in dict.fromkeys(row.name for row in rows):
        line = [(row.calls, row.error) for row in rows if row.name == name and row.error < float("inf")]
        if line:
            x, y = zip(*line, strict=True)
            panel.plot(x, y, label=name if named else None, **style)
