"""`make quality` on a synthetic log of a few hundred requests: the figures hang together, and nothing is done twice."""

from __future__ import annotations

from pathlib import Path

import pytest

from loadtest.checks import quality_synthetic
from loadtest.checks.quality_synthetic import SIZES, Size, SyntheticQuality


def test_sizes_keep_the_worlds_length_of_histories() -> None:
    for size in SIZES.values():
        assert size.requests == 8 * size.users


@pytest.mark.slow
def test_figures_follow_from_each_other_and_models_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quality_synthetic, "SIZES", {"fast": Size(400, 50, 2, 1, 16, ("kunlun", "logistic regression"))})
    quality = SyntheticQuality(tmp_path, "fast")
    over, gap = (check() for check in quality.checks().values())
    kunlun = gap.figures["kunlun"]
    assert over.figures["ne_expected"] == kunlun["ne_expected"]
    assert over.figures["over_bayes_percent"]["value"] == pytest.approx(
        100 * (kunlun["ne_expected"] / over.figures["ne_bayes"] - 1), abs=0.05
    )
    none, best = gap.figures["ne_no_history"], gap.figures["ne_bayes"]
    share = 100 * (none - kunlun["ne_expected"]) / (none - best)
    assert kunlun["gap_closed_percent"]["value"] == pytest.approx(share, abs=0.05)
    assert kunlun["gap_closed_percent"]["low"] <= kunlun["gap_closed_percent"]["value"] <= kunlun["gap_closed_percent"]["high"]
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("result.json")}
    again = SyntheticQuality(tmp_path, "fast")
    assert again.over_bayes().figures == over.figures
    assert len(before) == 2
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("result.json")} == before
