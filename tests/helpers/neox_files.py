"""GPT-NeoX's own files, written from its rules: a model cut over ranks, and index maps."""

from __future__ import annotations

import random
import struct
from collections import OrderedDict
from pathlib import Path, PurePosixPath

import numpy as np
import torch

from pythia_core.data.indexed_dataset import IndexedWriter, MegatronIndexed
from pythia_core.data.order import RowOrder
from pythia_core.model import GPTNeoX


def write_native(model: GPTNeoX, folder: Path, ranks: int, sequential: bool = False) -> None:
    """Write the weights of a model as GPT-NeoX does on several ranks, a file per layer and rank.

    If `sequential`, write what GPT-NeoX 2.x does without pipeline stages: a file per rank, with
    everything that DeepSpeed saves and the later names of the MLP.

    The code follows the rules of GPT-NeoX, not the table that the tests check. Some biases must be
    summed over ranks, so their parts are unequal here. LayerNorms must be averaged, so their copies
    differ a little.
    """
    folder.mkdir()
    c, state = model.config, model.state_dict()
    for rank in range(ranks):

        def split(t: torch.Tensor, dim: int, rank: int = rank) -> torch.Tensor:
            """Return the rank's part of a tensor that is cut along the dimension `dim`."""
            return t.chunk(ranks, dim)[rank].clone()

        def share(t: torch.Tensor, rank: int = rank) -> torch.Tensor:
            """Return the rank's share of a bias. The shares of all ranks sum to the bias."""
            weight = 2.0 * (rank + 1) / (ranks * (ranks + 1))
            return t * weight

        def norm(t: torch.Tensor, rank: int = rank) -> torch.Tensor:
            """Return the rank's copy of a LayerNorm tensor. The mean of all copies is exact."""
            return t + 0.01 * (rank - (ranks - 1) / 2)

        files = {0: {"word_embeddings.weight": split(state["embed_in.weight"], 0)}}
        for layer in range(c.n_layers):
            part = {k.split(".", 2)[2]: t for k, t in state.items() if f"layers.{layer}." in k}
            heads = part["attention.query_key_value.weight"].view(c.n_heads, 3 * c.head_dim, -1)
            bias = part["attention.query_key_value.bias"].view(c.n_heads, 3 * c.head_dim)
            files[layer + 2] = {
                "input_layernorm.weight": norm(part["input_layernorm.weight"]),
                "input_layernorm.bias": norm(part["input_layernorm.bias"]),
                "post_attention_layernorm.weight": norm(part["post_attention_layernorm.weight"]),
                "post_attention_layernorm.bias": norm(part["post_attention_layernorm.bias"]),
                "attention.query_key_value.weight": split(heads, 0).flatten(0, 1),
                "attention.query_key_value.bias": split(bias, 0).flatten(),
                "attention.dense.weight": split(part["attention.dense.weight"], 1),
                "attention.dense.bias": share(part["attention.dense.bias"]),
                "attention.rotary_emb.inv_freq": torch.ones(c.rotary_dims // 2).half(),
                "mlp.dense_h_to_4h.weight": split(part["mlp.dense_h_to_4h.weight"], 0),
                "mlp.dense_h_to_4h.bias": split(part["mlp.dense_h_to_4h.bias"], 0),
                "mlp.dense_4h_to_h.weight": split(part["mlp.dense_4h_to_h.weight"], 1),
                "mlp.dense_4h_to_h.bias": share(part["mlp.dense_4h_to_h.bias"]),
            }
        files[c.n_layers + 3] = {
            "norm.weight": norm(state["final_layer_norm.weight"]),
            "norm.bias": norm(state["final_layer_norm.bias"]),
        }
        files[c.n_layers + 4] = {"final_linear.weight": split(state["embed_out.weight"], 0)}
        if not sequential:
            for number, content in files.items():
                torch.save(content, folder / f"layer_{number:02}-model_{rank:02}-model_states.pt")
            continue
        module = OrderedDict()
        for number, content in files.items():
            for key, tensor in content.items():
                key = key.replace("dense_h_to_4h", "linear1").replace("dense_4h_to_h", "linear2")
                module[f"sequential.{number}.{key}"] = tensor
        saved = {
            "module": module,
            "buffer_names": [],
            "optimizer": {"loss_scaler": LossScaler(), "fp32_groups": [torch.ones(3)]},
            "param_shapes": [OrderedDict((key, t.shape) for key, t in module.items())],
            "lr_scheduler": {"num_iters": 7, "warmup_iter": 0.1},
            "sparse_tensor_module_names": set(),
            "global_steps": 7,
            "ds_version": "0.10.0",
            "args": {"num_layers": c.n_layers, "tokenizer_type": "HFTokenizer"},
            "random_rng_state": random.getstate(),
            "np_rng_state": np.random.RandomState(rank).get_state(),
            "torch_rng_state": torch.get_rng_state(),
            "cwd": PurePosixPath("/"),
        }
        torch.save(saved, folder / f"mp_rank_{rank:02}_model_states.pt")


class LossScaler:
    """An object in a checkpoint, like DeepSpeed's, whose class is not imported to read it."""

    def __init__(self) -> None:
        self.scale = 2.0**16


def sample_index(sizes: list[int], order: list[int], seq_len: int, n: int) -> list[list[int]]:
    """Compute GPT-NeoX's map sample_idx token by token: where each of `n` rows begins.

    Args:
        sizes: number of tokens of each document.
        order: the documents in the order in which they are read.

    Returns:
        [index in `order`, offset in the document] of the first token of each row, and of the row
        that would follow.
    """
    found = [[0, 0]]
    place = offset = 0
    for _ in range(n):
        left = seq_len + 1
        while left:
            here = sizes[order[place]] - offset
            left -= here
            if left <= 0:
                offset += left + here - 1
                left = 0
            else:
                place, offset = place + 1, 0
        found.append([place, offset])
    return found


def write_maps(
    folder: Path, seed: int = 3, seq_len: int = 8, epochs: int = 1, kind: str = "<i4"
) -> tuple[Path, RowOrder, MegatronIndexed]:
    """Write a toy corpus, and the three index maps that GPT-NeoX would write beside it.

    Args:
        kind: dtype of the map sample_idx.

    Returns:
        The common beginning of the paths of the maps, before endings such as "_doc_idx.npy"; the
        order that the maps encode; and the corpus.
    """
    rng = np.random.RandomState(1)
    sizes = [0, *rng.randint(0, 30, 40).tolist(), 0]
    with IndexedWriter(folder / "toy_document", 60_000) as out:
        for size in sizes:
            out.add(rng.randint(0, 60_000, size))
    data = MegatronIndexed(folder / "toy_document")
    order = RowOrder(data.sizes, seq_len, seed, epochs)
    stem = folder / f"toy_document_train_0_indexmap_99ns_{seq_len}sl_{seed}s"
    samples = sample_index(sizes, order.documents.tolist(), seq_len, order.n_rows)
    np.save(f"{stem}_doc_idx.npy", order.documents)
    np.save(f"{stem}_sample_idx.npy", np.array(samples, kind))
    np.save(f"{stem}_shuffle_idx.npy", order.shuffle)
    return stem, order, data


def neox_index(sizes: np.ndarray | list[int], entries: int, code: int = 8, width: int = 2) -> bytes:
    """Return an `.idx` file of GPT-NeoX's tools, packed by hand.

    Args:
        sizes: number of tokens of each sequence.
        entries: length of the document table. Builders that only add items write 1, like that of
            the released document.idx; a file of 100 documents to which others were merged has 101.
        code, width: code and bytes of the dtype of the ids.
    """
    sizes = np.asarray(sizes, np.int64)
    pointers = np.concatenate([[0], np.cumsum(sizes)])[:-1] * width
    return b"".join(
        (
            b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, code, len(sizes), entries),
            sizes.astype("<i4").tobytes() + pointers.astype("<i8").tobytes(),
            np.arange(entries, dtype="<i8").tobytes(),
        )
    )
