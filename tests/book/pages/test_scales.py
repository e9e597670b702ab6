"""What larger scales need: the numbers are those of the budget, for each study by itself."""

from __future__ import annotations

import re

from places import ROOT
from pythia_book import budget
from pythia_book.pages import scales
from pythia_book.studies.registry import STUDIES, runs_of


def test_a_study_is_counted_by_itself() -> None:
    values = scales.values()
    named = {f"{study}_{what}" for study in STUDIES for what in ("runs", "time", "disk")}
    models = {f"ablations_{what}" for what in ("models", "sizes", "tokens", "row")}
    assert set(values) - {"largest"} == named | models and values["largest"] == "85m"
    assert (values["ablations_models"], values["ablations_sizes"]) == ("16", "1.2m and 4.7m")
    assert values["scaling_runs"] == str(len(runs_of("scaling", "gpu"))) == "16"
    shared = budget.studies_table("gpu").set_index("study")
    assert shared.runs["scaling"] == 0, "in the sum over studies, the suite has trained these runs"
    assert values["scaling_time"].endswith("min") and values["scaling_disk"].endswith("GB")


def test_every_number_in_a_notebook_exists() -> None:
    found = set()
    for notebook in (ROOT / "notebooks").glob("*.ipynb"):
        found |= set(re.findall(r"\{value\}`scales\.(\w+)`", notebook.read_text("utf-8")))
    assert found <= set(scales.values())
