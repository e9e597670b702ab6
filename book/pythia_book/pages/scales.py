"""Computes what a study would take on one GPU, for the sections on larger scales.

Times and bytes are predictions of pythia_book.budget for one H100. Each study is counted by itself,
with its default parameters, as if no other study had trained any of its runs.
"""

from __future__ import annotations

from functools import cache

from pythia_book.budget import run_tokens, studies_table
from pythia_book.pages.real_suite import bytes_text, time_text
from pythia_book.studies.registry import ALL, STUDIES, params_of
from pythia_core.suite import scale_named

SCALE = "gpu"


@cache
def values() -> dict[str, str]:
    """Return `largest` (the largest size) and numbers of each study, as text.

    A study with runs has `<study>_runs`, `_time` and `_disk`. A study whose models are not runs
    has `_models`, `_sizes`, `_tokens` (read by one model) and `_row` (tokens per row) instead,
    because its time is not predicted.
    """
    numbers = {"largest": scale_named(SCALE).sizes[-1]}
    for study in STUDIES:
        (needs,) = studies_table(SCALE, [study]).itertuples()
        numbers |= {
            f"{study}_runs": f"{needs.runs}",
            f"{study}_time": time_text(needs.total_s),
            f"{study}_disk": bytes_text(1e9 * needs.kept_gb),
        }
    for study in ALL:
        module = params_of(study)
        if hasattr(module, "models"):
            params = module.Params(SCALE)
            models = module.models(params)
            numbers |= {
                f"{study}_models": f"{len(models)}",
                f"{study}_sizes": " and ".join(params.size_list),
                f"{study}_tokens": f"{run_tokens(models[0]):,}",
                f"{study}_row": f"{models[0].data.seq_len}",
            }
    return numbers
