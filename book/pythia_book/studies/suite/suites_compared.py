"""Public suites of language models beside Pythia, after table 2 of the paper.

The axes are the paper's (section 2.1). The table itself is a picture in the copy we read, so that
its entries are from general knowledge of the releases; `certainty` says of each row whether it was
checked against the paper's text or a released file ("checked") or not ("from memory"). Pythia's own
row is counted from its released configs (pythia_core.suite).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pythia_core.suite import OFFICIAL_SIZES
from pythia_core.training.schedule import N_CHECKPOINTS

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = (
    "suite",
    "models",
    "smallest",
    "largest",
    "checkpoints",
    "public models",
    "public data",
    "known order",
    "same order for all",
    "certainty",
)
_OTHERS = (
    # checkpoints: of the model of the suite that has the fewest
    ("GPT-2", 4, "124M", "1.5B", 1, "yes", "no", "no", "no", "from memory"),
    ("GPT-3", 4, "Ada", "DaVinci", 1, "paid access", "no", "no", "no", "from memory"),
    ("GPT-Neo", 6, "125M", "20B", 30, "yes", "yes", "yes", "no", "from memory"),
    ("OPT", 9, "125M", "175B", 2, "yes", "no", "no", "no", "from memory"),
    ("T5", 5, "60M", "11B", 1, "yes", "yes", "no", "no", "from memory"),
    ("BLOOM", 5, "560M", "176B", 8, "yes", "on request", "yes", "mostly", "from memory"),
)
IN_PAPER = ("70m", "160m", "410m", "1b", "1.4b", "2.8b", "6.9b", "12b")
"""Sizes of the paper; 14M and 31M were released later."""


def suites_table() -> pd.DataFrame:
    """One row a suite; Pythia's is the last."""
    import pandas as pd

    sizes = [name.upper() for name in OFFICIAL_SIZES if name in IN_PAPER]
    pythia = ("Pythia", len(sizes), sizes[0], sizes[-1], N_CHECKPOINTS, *["yes"] * 4, "checked")
    return pd.DataFrame([*_OTHERS, pythia], columns=list(COLUMNS))
