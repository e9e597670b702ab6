"""The ten released sizes: what was really done for each, and what it takes to use or repeat them.

What no computation can give is in `TRAINED_IN` and `USABLE_VOCABULARY`; the layout of the training
is recipe.HARDWARE, shapes, initialisations and learning rates are scales.OFFICIAL_SIZES, and all
else is computed from these. Times are estimates by the rates named here.

Not here: the cost of the original training (recipe).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pythia_core.metrics import flops_per_token
from pythia_core.recipe import HARDWARE, SEQ_LEN, estimates
from pythia_core.scales import OFFICIAL_SIZES
from pythia_core.schedule import N_CHECKPOINTS

if TYPE_CHECKING:
    import pandas as pd

TRAINED_IN = dict.fromkeys(OFFICIAL_SIZES, "fp16") | {"1b": "bf16"}
"""Precision of the products, by size; 1B's standard run left fp16 after a loss spike that would not
heal, its deduplicated twin did not (EleutherAI/pythia, README; gpt-neox, configs/pythia/1B.yml)."""
USABLE_VOCABULARY = 50_277
"""Entries of the tokenizer; rows past them are never targets."""
PADDED_TO = 128
"""The vocabulary is padded to a multiple of this, times the tensor-parallel ranks."""

STORED_BYTES = 2
"""A parameter on the hub: half precision."""
STATE_BYTES = {"fp32": 16, "bf16": 18}
"""A parameter in training here: weight, gradient and two moments in fp32; in bf16 a copy more."""
DOWNLOAD = 100e6
"""Bytes a second; an assumption."""
CPU_FLOPS = 100e9
"""FLOP a second of a few cores in fp32; an assumption."""
GPU_BYTES = 80e9


def padded_vocabulary(tensor_parallel: int) -> int:
    """GPT-NeoX's rule."""
    multiple = PADDED_TO * tensor_parallel
    return -(-USABLE_VOCABULARY // multiple) * multiple


def repository(size: str, deduplicated: bool = False) -> str:
    """A released model's name on the hub."""
    return f"EleutherAI/pythia-{size}" + ("-deduped" if deduplicated else "")


def fidelity_table() -> pd.DataFrame:
    """What was really done, by size: precision, initialisation, vocabulary, learning rate."""
    import pandas as pd

    rows = []
    for name, size in OFFICIAL_SIZES.items():
        hardware = HARDWARE[name]
        rows.append(
            {
                "size": name,
                "precision": TRAINED_IN[name],
                "init": size.init,
                "tensor_parallel": hardware.tensor_parallel,
                "vocabulary": padded_vocabulary(hardware.tensor_parallel),
                "head_dim": size.model().head_dim,
                "lr_max": size.lr_max,
                "lr_min": size.lr_max / 10,
            }
        )
    return pd.DataFrame(rows)


def reading_table() -> pd.DataFrame:
    """What it takes to read a released model: bytes on the hub, time, memory in fp32.

    `row_seconds`: the forward pass of 2,048 tokens, a third of a training step's work, on a CPU.
    """
    import pandas as pd

    rows = []
    for name, size in OFFICIAL_SIZES.items():
        model = size.model()
        stored = STORED_BYTES * model.n_params
        rows.append(
            {
                "size": name,
                "repository": repository(name),
                "stored": stored,
                "minutes": stored / DOWNLOAD / 60,
                "stored_all": stored * N_CHECKPOINTS,
                "memory": 4 * model.n_params,
                "row_seconds": flops_per_token(model, SEQ_LEN) / 3 * SEQ_LEN / CPU_FLOPS,
            }
        )
    return pd.DataFrame(rows)


def training_table() -> pd.DataFrame:
    """What it would take to train a size again with this library, which splits no model.

    `state`: bytes of weights, gradients and optimizer in bf16, without activations; `fits`: whether
    a GPU of 80 GB holds that; `h100_hours`: recipe.estimates.
    """
    frame = estimates()[["size", "h100_hours"]].copy()
    parameters = [OFFICIAL_SIZES[name].model().n_params for name in frame["size"]]
    frame["parameters"] = parameters
    frame["state"] = [STATE_BYTES["bf16"] * n for n in parameters]
    frame["fits"] = frame.state < GPU_BYTES
    return frame
