"""Every benchmark runs in its small mode, and says how far its results are from the plain way's."""

import subprocess
import sys

import pandas as pd
import pytest
from conftest import ROOT

STAGES = [
    "scoring",
    "logit_lens",
    "enhanced_gcg",
    "pruning",
    "orthogonalization",
    "generation",
    "variants",
    "preferences",
    "finetuning",
]


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_a_benchmark_compares_equal_work(stage, tmp_path_factory):
    folder = tmp_path_factory.getbasetemp() / "benchmarks"
    subprocess.run(
        [sys.executable, "-m", f"benchmarks.{stage}", "--small", "--folder", str(folder)], cwd=ROOT, check=True
    )
    table = pd.read_parquet(folder / "small" / f"{stage}.parquet")
    for _, rows in table.groupby("unit"):
        assert rows["is_plain"].sum() == 1
        assert (rows["seconds"] > 0).all()
    if stage != "generation":  # whose replies are not compared
        assert table["largest_difference"].max() <= 1e-4, "rounding in float32"


def test_the_growth_of_cost_is_drawn(tmp_path):
    rows = [
        {"stage": "scoring", "unit": "question", "way": way, "count": count, "seconds": count / 10, "device_gib": gib}
        for way in ("one at a time", "resurface")
        for count, gib in ((10, 0.0), (20, 0.0), (40, 0.0))
    ]
    pd.DataFrame(rows).to_parquet(tmp_path / "scoring.parquet")
    subprocess.run([sys.executable, "-m", "benchmarks.plot", tmp_path, tmp_path / "docs"], cwd=ROOT, check=True)
    assert len(pd.read_parquet(tmp_path / "docs" / "speed.parquet")) == len(rows)
    assert (tmp_path / "docs" / "speed.png").read_bytes().startswith(b"\x89PNG")
