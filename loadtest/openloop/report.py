"""Plots of load tests: what the callers waited, as survival curves (log-log), one line per run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from loadtest.openloop.generator import Sample


def plot_latencies(runs: Mapping[str, Sample], path: Path, bound_ms: float | None = None) -> None:
    """Share of answered requests that waited longer than x ms; `bound_ms` is drawn as a line."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    for name, sample in runs.items():
        waited = np.sort(sample.latency_s[sample.answered] * 1e3)
        if len(waited):
            axes.step(waited, 1 - np.arange(len(waited)) / len(waited), where="post", label=name)
    if bound_ms is not None:
        axes.axvline(bound_ms, color="black", linestyle=":", label=f"bound {bound_ms:.0f} ms")
    axes.set(
        xscale="log", yscale="log", xlabel="latency from the scheduled time, ms", ylabel="share of requests that waited longer"
    )
    axes.grid(visible=True, which="both", alpha=0.3)
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
