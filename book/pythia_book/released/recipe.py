"""Makes tables about the released models: parts of a layer, hardware, and cost of training.

`HARDWARE` and `GPT3` are published facts. All other numbers follow from the model configs.
The paper reports neither energy nor H100 hours, so `estimates` rests on stated assumptions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pythia_core.suite import OFFICIAL_SIZES
from pythia_core.training.metrics import flops_per_token
from pythia_core.training.schedule import OFFICIAL_STEPS, learning_rate, lr_floor_step

if TYPE_CHECKING:
    import pandas as pd

    from pythia_core.config import ModelConfig

SEQ_LEN = 2048
BATCH_ROWS = 1024
BATCH_TOKENS = BATCH_ROWS * SEQ_LEN
TOKENS = OFFICIAL_STEPS * BATCH_TOKENS

A100_PEAK = 312e12
"""Dense FLOP/s of an A100 in fp16 or bf16, from the data sheet. H100_PEAK: those of an H100 SXM."""
H100_PEAK = 989e12
H100_UTILIZATION = 0.40
"""Assumed fraction of the peak in training; not measured. The released 70M to 410M models reached
22 to 26 % of the peak of their A100s, according to the GPU-hours in the paper.
"""
A100_WATT = 400
"""Power limit of an A100 SXM board. PUE: the power usage effectiveness of the data center."""
PUE = 1.1


@dataclass(frozen=True)
class Hardware:
    """The A100 GPUs (40 GB) on which one size was trained, and how they were used."""

    gpus: int
    micro_batch: int
    """Rows per forward and backward pass on one copy of the model."""
    accumulation: int
    """Passes per update."""
    tensor_parallel: int
    """GPUs that share one copy of the model."""
    zero: int
    """Stage of ZeRO."""
    gpu_hours: int | None
    """GPU-hours per model; None for the two sizes added after the paper."""


HARDWARE = {
    # GPUs, micro-batch, accumulation, tensor parallel, ZeRO, GPU-hours
    "14m": Hardware(32, 32, 1, 1, 0, None),
    "31m": Hardware(32, 32, 1, 1, 0, None),
    "70m": Hardware(32, 32, 1, 1, 1, 510),
    "160m": Hardware(32, 32, 1, 1, 1, 1_030),
    "410m": Hardware(32, 32, 1, 1, 1, 2_540),
    "1b": Hardware(64, 16, 1, 1, 1, 4_830),
    "1.4b": Hardware(64, 16, 1, 1, 1, 7_120),
    "2.8b": Hardware(64, 16, 1, 1, 1, 14_240),
    "6.9b": Hardware(128, 8, 2, 2, 1, 33_500),
    "12b": Hardware(256, 8, 2, 4, 1, 72_300),
}
"""The layout is from EleutherAI/pythia, models/*/*.yml. The GPU-hours are from table 5 of the
paper, an image that could not be checked again. The paper's text has a total of 544,280 GPU-hours.
That is exactly four times the sum here, because both halves of the suite were trained twice.
"""


@dataclass(frozen=True)
class Neighbor:
    """The GPT-3 model nearest to a size of Pythia (Brown et al. 2020, table 2.1)."""

    name: str | None
    """None for 70m: no GPT-3 model is that small."""
    batch_tokens: int
    lr_max: float | None


_M = 2**20
GPT3 = {
    # The batches of 70m-1.4b are also those of the released ablation (evals, "*MtokBS").
    "70m": Neighbor(None, _M // 4, None),
    "160m": Neighbor("125M", _M // 2, 6.0e-4),
    "410m": Neighbor("350M", _M // 2, 3.0e-4),
    "1b": Neighbor("760M", _M // 2, 2.5e-4),
    "1.4b": Neighbor("1.3B", _M, 2.0e-4),
    "2.8b": Neighbor("2.7B", _M, 1.6e-4),
    "6.9b": Neighbor("6.7B", 2 * _M, 1.2e-4),
    "12b": Neighbor("13B", 2 * _M, 1.0e-4),
}


def block_parts(config: ModelConfig) -> pd.DataFrame:
    """List the parts of one layer in execution order, as observed in a forward pass.

    Columns:
    - `part`: module name.
    - `weight`: shape of the weight, as text.
    - `parameters`: parameter count.
    - `d_in`, `d_out`: widths of input and output.
    - `reads`: origin of the input: "x" (the layer's input), the name of a part, or "" (neither).
    """
    import pandas as pd
    import torch

    from pythia_core.kernels import FAST, rotary_tables
    from pythia_core.model import Block

    rows: list[dict[str, Any]] = []
    outputs: list[tuple[str, torch.Tensor]] = []  # keep tensors alive, so that `is` is reliable

    def recorder(name: str) -> Any:
        """Return a forward hook that records the part `name`."""

        def hook(module: torch.nn.Module, args: tuple[Any, ...], out: torch.Tensor) -> None:
            shapes = {n: tuple(p.shape) for n, p in module.named_parameters()}
            rows.append(
                {
                    "part": name,
                    "weight": " \N{MULTIPLICATION SIGN} ".join(f"{n:,}" for n in shapes["weight"]),
                    "parameters": sum(p.numel() for p in module.parameters()),
                    "d_in": args[0].shape[-1],
                    "d_out": out.shape[-1],
                    "reads": next((part for part, tensor in outputs if tensor is args[0]), ""),
                }
            )
            outputs.append((name, out))

        return hook

    with torch.device("meta"):
        block = Block(config, FAST)
        for name, module in block.named_modules():
            if not list(module.children()):
                module.register_forward_hook(recorder(name))
        x = torch.empty(8, config.d_model)
        outputs.append(("x", x))
        rotary = rotary_tables(8, config.rotary_dims, config.rotary_base, torch.device("meta"))
        block(x, rotary, 1, torch.float32, FAST.attention)
    return pd.DataFrame(rows)


def cost_table() -> pd.DataFrame:
    """Return the training cost of each size, one row per size, with FLOP counted in two ways.

    "6nt" is 6 * parameters * tokens. "exact" counts all matrix products, including causal attention
    scores, but not embedding look-up, biases and norms.

    Columns:
    - `size`, `parameters`, `tokens_per_parameter`
    - `flop_6nt`, `flop_exact`
    - `gpu_hours`: missing if unknown.
    - `utilization_6nt`, `utilization_exact`: fraction of the A100 peak; missing if unknown.
    """
    import pandas as pd

    rows = []
    for name, hardware in HARDWARE.items():
        model = OFFICIAL_SIZES[name].model()
        by_rule = 6.0 * model.n_params * TOKENS
        exact = flops_per_token(model, SEQ_LEN) * TOKENS
        hours = hardware.gpu_hours
        rows.append(
            {
                "size": name,
                "parameters": model.n_params,
                "tokens_per_parameter": TOKENS / model.n_params,
                "flop_6nt": by_rule,
                "flop_exact": exact,
                "gpu_hours": hours,
                "utilization_6nt": hours and by_rule / (3600 * hours * A100_PEAK),
                "utilization_exact": hours and exact / (3600 * hours * A100_PEAK),
            }
        )
    return pd.DataFrame(rows)


def layout_table() -> pd.DataFrame:
    """Return how a batch was split over the GPUs, one row per size.

    The columns are `size`, all fields of Hardware except `gpu_hours`, and

    - `ranks`: copies of the model.
    - `rows`: rows per update.
    - `days`: missing if the GPU-hours are unknown.
    """
    import pandas as pd

    rows = [
        {
            "size": name,
            "gpus": h.gpus,
            "tensor_parallel": h.tensor_parallel,
            "ranks": h.gpus // h.tensor_parallel,
            "micro_batch": h.micro_batch,
            "accumulation": h.accumulation,
            "rows": h.gpus // h.tensor_parallel * h.micro_batch * h.accumulation,
            "zero": h.zero,
            "days": h.gpu_hours and h.gpu_hours / h.gpus / 24,
        }
        for name, h in HARDWARE.items()
    ]
    return pd.DataFrame(rows)


def estimates() -> pd.DataFrame:
    """Estimate the energy of the original training and the hours on one H100, one row per size.

    The energy assumes that every GPU runs at its power limit, and omits hosts and network. The H100
    hours ignore whether the model fits into memory. Columns: `size`, `gpu_hours` (A100),
    `energy_mwh`, `h100_hours`.
    """
    costs = cost_table()
    frame = costs[["size", "gpu_hours"]].copy()
    frame["energy_mwh"] = frame.gpu_hours * A100_WATT * PUE / 1e6
    frame["h100_hours"] = costs.flop_exact / (H100_UTILIZATION * H100_PEAK) / 3600
    return frame


def gpt3_table() -> pd.DataFrame:
    """Compare each size of Pythia with the GPT-3 model nearest in size.

    Columns:
    - `size`, `lr_max`, `gpus`: of Pythia; `lr_max` is the peak learning rate.
    - `gpt3`, `gpt3_lr_max`, `gpt3_batch`: of GPT-3; the batch is in tokens.
    - `gpus_allowed`: GPUs that GPT-3's batch would occupy at Pythia's rows per GPU.
    - `speed_up`: Pythia's batch divided by GPT-3's.
    """
    import pandas as pd

    rows = [
        {
            "size": name,
            "lr_max": OFFICIAL_SIZES[name].lr_max,
            "gpt3": near.name,
            "gpt3_lr_max": near.lr_max,
            "gpt3_batch": near.batch_tokens,
            "gpus_allowed": HARDWARE[name].gpus * near.batch_tokens // BATCH_TOKENS,
            "gpus": HARDWARE[name].gpus,
            "speed_up": BATCH_TOKENS / near.batch_tokens,
        }
        for name, near in GPT3.items()
    ]
    return pd.DataFrame(rows)


def schedules(points: int = 600) -> tuple[pd.DataFrame, int]:
    """Compare the learning rate of the released models with the schedule in the paper.

    The table has `step`, at `points` equal intervals, and the rate as a fraction of the peak:
    `neox` (actual) and `paper` (a cosine that falls to a tenth of the peak at the last step). The
    second result is the first step at which the actual rate is at its minimum.
    """
    import pandas as pd

    floor = lr_floor_step(OFFICIAL_STEPS)
    steps = sorted({*(OFFICIAL_STEPS * i // points for i in range(points + 1)), floor})
    forms = {
        form: [learning_rate(s, OFFICIAL_STEPS, 1.0, 0.1, form=form) for s in steps]
        for form in ("neox", "paper")
    }
    return pd.DataFrame({"step": steps, **forms}), floor
