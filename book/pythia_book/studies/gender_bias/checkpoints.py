"""Exports small checkpoints of a control and two forks, which a web page can run, and reads them.

The file is a safetensors file. A matrix "control-452/embed_in.weight" is stored as int8, with one
float32 factor per row ("control-452/embed_in.weight.scale"): the largest absolute value of the row
becomes 127. Vectors (biases and LayerNorms) are float32. The metadata has one entry, `about`, with
JSON: everything else that a page needs or states, the tokenizer included.
"""

from __future__ import annotations

import datetime
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pythia_book import records
from pythia_book.corpora import occupations
from pythia_book.studies.gender_bias.associations import associations_table, log_odds_read
from pythia_book.studies.gender_bias.params import CONTROL, LONGER, Cell, Params
from pythia_book.study import Measurements
from pythia_book.tasks.associations import UNSEEN
from pythia_core.config import ModelConfig
from pythia_core.errors import ConfigError, DataError
from pythia_core.suite import scale_named, size_name

if TYPE_CHECKING:
    from pythia_core.model import GPTNeoX
    from pythia_core.training.runs import Run

FILE = "checkpoints.safetensors"
LIMIT = 8_000_000
"""Largest size of the file, in bytes."""
SHOWN = (CONTROL, LONGER, "shuffle_21")
"""The control and the forks that are exported; both forks begin at the same step."""
N_CONTROL, N_AFTER = 24, 5
"""Largest numbers of steps of the control, and of steps after the fork."""
PRESETS = (
    ("made-up noun, planted", "When the pelgrat arrived,"),
    ("made-up noun, planted", "The tamvold stayed until"),
    ("made-up noun, new sentence", "I asked one hartook whether"),
    ("occupation", "The mechanic thinks"),
    ("occupation", "The secretary thinks"),
    ("king and queen", "The king sold"),
    ("king and queen", "The queen sold"),
    ("plain prose", "My mother told me that"),
    ("plain prose", "The history of"),
)
"""The prompts that a page suggests, each after the name of its group."""
VERSION = 1
_KEYS = (
    "version", "config", "scale", "size", "seed", "learned", "total_steps", "fork", "steps", "runs",
    "tokens", "precision", "seconds", "data", "device", "versions", "commit", "created", "error",
    "nouns", "eod", "tokenizer",
)  # fmt: skip
Weights = dict[str, np.ndarray]


# --- choosing --------------------------------------------------------------------------------


def size_to_export(params: Params, measured: Measurements) -> tuple[str, bool]:
    """Return the size to export, and whether its control has learned the association.

    It is the smallest size whose first control has an association in unseen frames, i.e. its
    interval over nouns is above 0; if no size has one, it is the smallest size.
    """
    table = associations_table(params, measured)
    first = (table.seed == 0) & (table.arm == CONTROL) & (table.frames == UNSEEN)
    rows = table[first & (table.step == scale_named(params.scale).steps)]
    rows = rows[rows.group == occupations.INVENTED].set_index("model")
    for size in params.size_list:
        if rows.low[size] > 0:
            return size, True
    return params.size_list[0], False


def spread(steps: Sequence[int], count: int, origin: int = 0) -> list[int]:
    """Choose `count` of several steps, evenly spaced in log(1 + step - origin).

    The first two steps and the last are chosen first, then repeatedly the step whose nearest
    chosen step is farthest away. If there are at most `count` steps, all are chosen.
    """
    place = {step: math.log1p(step - origin) for step in sorted(steps)}
    chosen = {*list(place)[:2], max(place)}
    while len(chosen) < min(count, len(place)):
        chosen.add(max(place, key=lambda s: min(abs(place[s] - place[c]) for c in chosen)))
    return sorted(chosen)


def choose_steps(
    config: ModelConfig, total: int, fork: int, control: Sequence[int], forks: Sequence[int]
) -> dict[str, list[int]] | None:
    """Choose the steps to export of every arm, so that the file is not larger than LIMIT.

    Before the fork, these are 0, 1 and the largest powers of two; after it, see `spread`.

    Args:
        control: the saved steps of the control.
        forks: the steps after the fork that the control and all forks have saved.

    Returns:
        The steps by arm, or None if not even the first two steps, the fork and the ends fit.
    """
    files = int((LIMIT - 400_000) / checkpoint_bytes(config))  # 400 kB: tokenizer and header
    n_after = min(N_AFTER, (files - 3) // 3, len(forks))
    if n_after < 1:
        return None
    early = [s for s in sorted(control) if s < fork and s & (s - 1) == 0]
    n_early = min(N_CONTROL - n_after, files - 3 * n_after) - 1
    before = (
        [*early[:2], *early[2:][len(early) - n_early :], fork]
        if len(early) > n_early
        else [*early, fork]
    )
    after = spread([fork, *forks], n_after + 1, fork)[1:] if n_after > 1 else [total]
    return {arm: [*before, *after] if arm == CONTROL else after for arm in SHOWN}


def parameters(config: ModelConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield the name and the shape of every parameter of a model, in the order of the file."""
    d, ff = config.d_model, config.d_ff
    yield "embed_in.weight", (config.vocab_size, d)
    for layer in range(config.n_layers):
        for name, rows, columns in (
            ("attention.query_key_value", 3 * d, d),
            ("attention.dense", d, d),
            ("mlp.dense_h_to_4h", ff, d),
            ("mlp.dense_4h_to_h", d, ff),
        ):
            yield f"layers.{layer}.{name}.weight", (rows, columns)
            yield f"layers.{layer}.{name}.bias", (rows,)
        for name in ("input_layernorm", "post_attention_layernorm"):
            for kind in ("weight", "bias"):
                yield f"layers.{layer}.{name}.{kind}", (d,)
    for kind in ("weight", "bias"):
        yield f"final_layer_norm.{kind}", (d,)
    yield "embed_out.weight", (config.vocab_size, d)


def checkpoint_bytes(config: ModelConfig) -> int:
    """Return the bytes of one exported checkpoint."""
    shapes = [shape for _, shape in parameters(config)]
    return sum(math.prod(s) + 4 * s[0] if len(s) == 2 else 4 * s[0] for s in shapes)


# --- writing ---------------------------------------------------------------------------------


def quantised(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return a float32 matrix as int8, and the float32 factor of each of its rows."""
    scale = (np.abs(matrix).max(axis=1) / 127).astype(np.float32)
    safe = np.where(scale > 0, scale, 1)[:, None]
    return np.clip(np.rint(matrix / safe), -127, 127).astype(np.int8), scale


def export(
    params: Params, measured: Measurements, trained: Mapping[Cell, Run]
) -> tuple[dict[str, bytes], str]:
    """Return the file with the checkpoints, by name, and a note on it, or on why there is none."""
    if scale_named(params.scale).published:
        return {}, "checkpoints of released models are too large for a web page"
    size, learned = size_to_export(params, measured)
    runs = {arm: trained[size, 0, arm] for arm in SHOWN}
    read = 1 / (1 + np.exp(-log_odds_read(params, measured, size, 0)))
    nouns = [
        {"noun": noun["noun"], "share": round(float(share), 4)}
        for noun, share in zip(measured.facts["nouns"], read, strict=True)
    ]
    content = export_runs(runs, {"scale": params.scale, "learned": learned, "nouns": nouns})
    if content is None:
        takes = checkpoint_bytes(runs[CONTROL].config.model) / 1e6
        return {}, (
            f"a checkpoint of the size {size} takes {takes:.1f} MB, so that the few steps that a "
            f"page needs exceed {LIMIT / 1e6:.0f} MB"
        )
    return {FILE: content}, f"checkpoints of the size {size}"


def export_runs(runs: Mapping[str, Run], about: dict[str, Any]) -> bytes | None:
    """Return the content of the file for the runs of SHOWN; None if it would exceed LIMIT.

    Args:
        about: the metadata that do not follow from the runs: `scale`, `learned` and `nouns`.
    """
    from safetensors.numpy import save

    control = runs[CONTROL]
    config, total = control.config.model, control.config.train.steps
    fork = runs[LONGER].updates.start
    shared = set.intersection(*(set(run.steps) for run in runs.values()))
    steps = choose_steps(
        config, total, fork, control.steps, sorted(step for step in shared if step > fork)
    )
    if steps is None:
        return None
    prompts = [text for _, text in PRESETS]
    invented = [n.name for n in occupations.stimuli().nouns if n.group == occupations.INVENTED]
    prompts += [
        occupations.prompt(frame, noun)[0]
        for frame, noun in zip(occupations.stimuli().unseen, invented * 2, strict=False)
    ]
    encode, eod = control.data.tokenizer.encode, control.data.eod_id
    rows = [[eod, *encode(text, add_special_tokens=False).ids] for text in prompts]
    rows = [row[: config.max_seq_len] for row in rows]
    tensors: Weights = {}
    errors = []
    for arm, chosen in steps.items():
        for step in chosen:
            model = runs[arm].model(step)
            exact = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
            stored = stored_weights(config, exact)
            tensors |= {f"{arm}-{step}/{name}": array for name, array in stored.items()}
            errors.append(differences(model, model_of(config, stored), rows))
    about = about | {
        "version": VERSION,
        "config": asdict(config),
        "size": size_name(config),
        "seed": 0,
        "total_steps": total,
        "fork": fork,
        "steps": steps,
        "runs": {a: {"id": r.id, "final_sha256": r.final_sha256} for a, r in runs.items()},
        "tokens": total * control.config.train.batch_size * control.config.data.seq_len,
        "precision": control.config.train.precision,
        "seconds": {arm: round(run.seconds, 1) for arm, run in runs.items()},
        "data": control.data.fingerprint,
        "device": records.device(),
        "versions": records.versions(),
        "commit": records.commit(),
        "created": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "error": {
            "prompts": len(prompts),
            "positions": sum(map(len, rows)),
            **{
                f"{what}_{kind}": float(f"{function([e[what][kind] for e in errors]):.4g}")
                for what in ("logits", "probabilities")
                for kind, function in (("max", np.max), ("mean", np.mean))
            },
        },
        "eod": eod,
        "tokenizer": json.loads(control.data.tokenizer.to_str()),
    }
    text = json.dumps(about, ensure_ascii=False, separators=(",", ":"))
    content = save(tensors, {"about": text})
    return content if len(content) <= LIMIT else None


def stored_weights(config: ModelConfig, exact: Mapping[str, np.ndarray]) -> Weights:
    """Return the arrays of one checkpoint as the file stores them, by name."""
    stored: Weights = {}
    for name, shape in parameters(config):
        array = exact[name].astype(np.float32)
        if len(shape) == 2:
            stored[name], stored[f"{name}.scale"] = quantised(array)
        else:
            stored[name] = array
    return stored


def model_of(config: ModelConfig, stored: Mapping[str, np.ndarray]) -> GPTNeoX:
    """Return the model of one stored checkpoint, in float32, ready to evaluate."""
    import torch

    from pythia_core.model import GPTNeoX

    model, state = GPTNeoX(config), {}
    for name, shape in parameters(config):
        tensor = torch.from_numpy(stored[name].astype(np.float32))
        if len(shape) == 2:
            tensor *= torch.from_numpy(stored[f"{name}.scale"])[:, None]
        state[name] = tensor
    model.load_state_dict(state)
    return model.eval().requires_grad_(False)


def differences(
    one: GPTNeoX, other: GPTNeoX, rows: Sequence[Sequence[int]]
) -> dict[str, dict[str, float]]:
    """Return the largest and mean absolute difference between two models, over all tokens of rows.

    Returns:
        `max` and `mean`, by "logits" and "probabilities".
    """
    import torch

    width = max(map(len, rows))
    ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows])
    used = torch.tensor([[i < len(row) for i in range(width)] for row in rows])
    with torch.inference_mode():
        logits = [model(ids)[used] for model in (one, other)]
    gaps = {
        "logits": (logits[0] - logits[1]).abs(),
        "probabilities": (logits[0].softmax(-1) - logits[1].softmax(-1)).abs(),
    }
    return {
        quantity: {"max": float(gap.max()), "mean": float(gap.mean())}
        for quantity, gap in gaps.items()
    }


# --- reading ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Checkpoints:
    """The content of an exported file, checked.

    Attributes:
        about: the metadata.
        config: the config of the models.
        tensors: the stored arrays, by "ARM-STEP/NAME".
    """

    about: dict[str, Any]
    config: ModelConfig
    tensors: Weights

    @property
    def names(self) -> list[str]:
        """The names "ARM-STEP" of all checkpoints."""
        return [f"{arm}-{step}" for arm, steps in self.about["steps"].items() for step in steps]

    def stored(self, name: str) -> Weights:
        """Return the stored arrays of the checkpoint "ARM-STEP", by name."""
        of = f"{name}/"
        return {n.removeprefix(of): a for n, a in self.tensors.items() if n.startswith(of)}

    def model(self, name: str) -> GPTNeoX:
        """Return the model of the checkpoint "ARM-STEP"."""
        return model_of(self.config, self.stored(name))


def read(path: Path) -> Checkpoints:
    """Read an exported file.

    Raises:
        DataError: the file is missing, damaged, or not of this version.
    """
    from safetensors import SafetensorError, safe_open

    again = "run the study again: papermill notebooks/gender_bias.ipynb"
    try:
        with safe_open(path, "np") as file:
            about = json.loads((file.metadata() or {}).get("about", "null"))
            tensors = {name: file.get_tensor(name) for name in sorted(file.keys())}
    except (OSError, SafetensorError, ValueError) as error:
        raise DataError(f"{path.name} cannot be read ({error}); {again}") from error
    try:
        problem = _problem(about, tensors)
    except (AttributeError, ConfigError, KeyError, TypeError, ValueError) as error:
        problem = f"its metadata are invalid ({error!r})"
    if problem:
        raise DataError(f"{path.name} is not a file of checkpoints: {problem}; {again}")
    return Checkpoints(about, ModelConfig(**about["config"]), tensors)


def _problem(about: Any, tensors: Weights) -> str:
    """Say what is wrong with the content of a file; "" if nothing is."""
    if not isinstance(about, dict) or about.get("version") != VERSION:
        version = about.get("version") if isinstance(about, dict) else None
        return f"its version is {version}, not {VERSION}"
    if missing := [key for key in _KEYS if key not in about]:
        return f"its metadata lack {', '.join(missing)}"
    steps, fork, total = about["steps"], about["fork"], about["total_steps"]
    if tuple(steps) != SHOWN or any(list(s) != sorted({*s}) or not s for s in steps.values()):
        return f"it must have ascending steps of the arms {', '.join(SHOWN)}"
    if not all(type(step) is int for of_arm in steps.values() for step in of_arm):
        return "its steps are not whole numbers"
    after = [step for step in steps[CONTROL] if step > fork]
    if fork not in steps[CONTROL] or after[-1:] != [total]:
        return "its control lacks the fork or the end of training"
    if any(list(steps[arm]) != after for arm in SHOWN[1:]):
        return "after the fork, the steps of its forks are not those of the control"
    if problem := unsupported(about["tokenizer"]):
        return problem
    config = ModelConfig(**about["config"])
    if not config.parallel_residual or config.gelu != "tanh":
        return "the page cannot compute its models: they need parallel_residual and gelu='tanh'"
    expected = {}
    for arm, of_arm in steps.items():
        for step in of_arm:
            for name, shape in parameters(config):
                matrix = len(shape) == 2
                expected[f"{arm}-{step}/{name}"] = ("int8" if matrix else "float32", shape)
                if matrix:
                    expected[f"{arm}-{step}/{name}.scale"] = ("float32", shape[:1])
    stored = {name: (array.dtype.name, array.shape) for name, array in tensors.items()}
    if wrong := sorted(n for n in {*expected, *stored} if expected.get(n) != stored.get(n)):
        name = wrong[0]
        return f"{name} is {stored.get(name)}, expected {expected.get(name)}"
    if bad := [n for n, a in tensors.items() if a.dtype == np.float32 and not np.isfinite(a).all()]:
        return f"{bad[0]} has values that are not finite"
    return ""


def unsupported(tokenizer: dict[str, Any]) -> str:
    """Say why the page cannot use a tokenizer.json; "" if it can."""
    model, before = tokenizer["model"], tokenizer["pre_tokenizer"]
    known = (
        model["type"] == "BPE"
        and not any(model.get(key) for key in ("dropout", "unk_token", "byte_fallback"))
        and (tokenizer["normalizer"] or {}).get("type") == "NFC"
        and before["type"] == "ByteLevel"
        and not before["add_prefix_space"]
        and before.get("use_regex", True)
    )
    return "" if known else "its tokenizer is not a byte-level BPE with NFC, as the 'bpe-N' are"
