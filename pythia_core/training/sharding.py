"""Shard the state of training over processes, for models too large for one device.

torch's fully_shard (FSDP2) does it. Every process has some rows of each parameter, of its gradient
and of its two moments, in fp32. Before a block computes, its parameters are gathered from all
processes, in the compute dtype; after its backward, its gradient is summed over the processes in
fp32, and each process keeps its rows of the sum. LayerNorms and the embedding are gathered in fp32,
because the model computes with their fp32 values. AdamW runs the same kernel as with an unsharded
state, on each process's rows.

In a saved state, the i-th of the n processes that share one copy writes
`shard-000i-of-000n.safetensors`, with its rows of the weights (`model/NAME`) and moments
(`exp_avg/NAME`, `exp_avg_sq/NAME`). In order, the rows of all shards are the whole tensor, so any
number of processes can read what any other number has saved. (torch.distributed.checkpoint has a
pickled index, or none with its safetensors files, and cannot read the flat moments of an unsharded
state.)
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from pythia_core.config import ModelConfig, RunConfig, TrainConfig
from pythia_core.errors import CheckpointError, TrainingError
from pythia_core.kernels.adamw import AdamWBuffers, AdamWHyperparameters, adamw_
from pythia_core.model import GPTNeoX, LayerNorm
from pythia_core.training.checkpoint import (
    REPAIR,
    describe_file,
    not_saved,
    set_aside,
    step_folder,
    write_manifest,
)
from pythia_core.training.distributed import World
from pythia_core.training.optimizer import flat_order, is_decayed
from pythia_core.util.files import atomic_dir, save_safetensors

MOMENTS = ("exp_avg", "exp_avg_sq")
KINDS = ("model", *MOMENTS)
"""What a state has for every parameter: its weights and its moments."""
Files = dict[str, dict[str, Tensor]]
"""The tensors of a saved state, {file stem: {name: tensor}}."""
_SHARD = re.compile(r"shard-(\d+)-of-(\d+)")

# --- the model and its optimizer -------------------------------------------------------------


def shard_rows(n_rows: int, index: int, count: int) -> tuple[int, int]:
    """Return the bounds [start, stop) of the rows of a tensor that shard `index` of `count` has.

    The rows are those of `torch.chunk`, as in FSDP2; the last shards may have none.
    """
    size = -(-n_rows // count)
    return min(index * size, n_rows), min((index + 1) * size, n_rows)


class ShardedParameters:
    """The parameters of a model that `fully_shard` has split; the model works as before.

    Args:
        make_model: returns the model; it is called on torch's meta device, without any memory.
        config: also sets the seed of the initial weights, which equal the unsharded model's.

    Attributes:
        model: the model, on `device`.
        local: maps each parameter's name to the rows that this process has, in fp32.
    """

    def __init__(
        self,
        make_model: Callable[[ModelConfig], GPTNeoX],
        config: RunConfig,
        compute_dtype: torch.dtype,
        world: World,
        device: torch.device,
    ) -> None:
        self._world, self._dtype = world, compute_dtype
        with torch.device("meta"):
            self.model = make_model(config.model)
        self.model.compute_dtype = compute_dtype
        _fully_shard(self.model, compute_dtype, world, device)
        self.model.to_empty(device=device)
        self._parameters: dict[str, Any] = dict(self.model.named_parameters())  # DTensors
        self.shapes = {name: p.shape for name, p in self._parameters.items()}
        self.local = {name: p.detach().to_local() for name, p in self._parameters.items()}
        self.norms = {
            f"{name}.{leaf}"
            for name, module in self.model.named_modules()
            if isinstance(module, LayerNorm)
            for leaf, _ in module.named_parameters()
        }
        generator = torch.Generator().manual_seed(config.train.weight_seed)
        with torch.no_grad():
            for name, rows in self.local.items():  # one whole tensor at a time
                whole = torch.empty(self.shapes[name])
                self.model.init(name, whole, generator)
                rows.copy_(whole[slice(*self.rows(name))])

    def rows(self, name: str) -> tuple[int, int]:
        """Return the first of this process's rows of a parameter, and the row after the last."""
        return shard_rows(self.shapes[name][0], self._world.shard_index, self._world.shards)

    def gradient(self, name: str) -> Tensor:
        """Return this process's rows of a parameter's gradient, summed over all processes."""
        grad = self._parameters[name].grad
        return torch.zeros_like(self.local[name]) if grad is None else grad.to_local()

    def zero_grad_(self) -> None:
        """Set all gradients to zero."""
        self.model.zero_grad(set_to_none=True)

    def sum_gradients_(self, world: World, total: Tensor) -> None:
        """Sum `total` over all processes; FSDP has summed the gradients already."""
        world.all_reduce_(total)

    def norm(self) -> Tensor:
        """Return the global norm of the gradient, as a 0-dim fp32 tensor on the device."""
        norms = [torch.linalg.vector_norm(self.gradient(name)) for name in self.local]
        squares = torch.stack(norms).double().square().sum()
        self._world.all_reduce_(squares)  # over all copies, so that all get the same bits
        return (squares / (self._world.size // self._world.shards)).sqrt().float()

    def all_finite(self) -> bool:
        """Return whether every weight in every process is finite."""
        finite = all(bool(torch.isfinite(rows).all()) for rows in self.local.values())
        return not self._world.any_rank(not finite)

    def refresh_copies(self) -> None:
        """Do nothing: FSDP rounds the weights to the compute dtype whenever it gathers them."""

    def gathered(self, rounded: bool) -> Iterator[tuple[str, Tensor]]:
        """Yield the name of each parameter and its whole tensor, one at a time.

        All processes must iterate to the end.

        Args:
            rounded: return the weights as the forward pass reads them, i.e. in the compute dtype
                except in LayerNorms; else, in fp32.
        """
        for name, p in self._parameters.items():
            rows = p.detach()
            if rounded and name not in self.norms:
                rows = rows.to(self._dtype)
            with self._world.exchanging():
                whole = rows.full_tensor()
            yield name, whole


def _fully_shard(
    model: GPTNeoX, compute_dtype: torch.dtype, world: World, device: torch.device
) -> None:
    """Split a model: one group of parameters for each block, each LayerNorm, and each embedding."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import (
        FSDPModule,
        MixedPrecisionPolicy,
        fully_shard,
        register_fsdp_forward_method,
    )

    if world.shards < world.size:
        shape, names = (world.size // world.shards, world.shards), ("copies", "shards")
        mesh = init_device_mesh(device.type, shape, mesh_dim_names=names)
    else:
        mesh = init_device_mesh(device.type, (world.size,))
    exact, half = (
        MixedPrecisionPolicy(dtype, torch.float32, cast_forward_inputs=False)
        for dtype in (None, None if compute_dtype == torch.float32 else compute_dtype)
    )
    norms = [module for module in model.modules() if isinstance(module, LayerNorm)]
    for module in (*norms, model.embed_in):  # if cast, the embedding's gradient would be rounded
        fully_shard(module, mesh=mesh, mp_policy=exact)
    for module in (*model.layers, model):
        fully_shard(module, mesh=mesh, mp_policy=half)
    for module in model.modules():
        if isinstance(module, FSDPModule):  # the losses are weighted, so gradients are summed
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
    register_fsdp_forward_method(model, "loss")


class ShardedAdamW:
    """AdamW for ShardedParameters, with the same kernel and settings as FlatAdamW.

    Attributes:
        moments: maps MOMENTS to fp32 tensors by parameter, for the rows that this process has.
    """

    def __init__(self, parameters: ShardedParameters, train: TrainConfig) -> None:
        self._parameters = parameters
        self.moments = {
            kind: {name: torch.zeros_like(rows) for name, rows in parameters.local.items()}
            for kind in MOMENTS
        }
        self._hyperparameters = AdamWHyperparameters(
            train.beta1, train.beta2, train.eps, train.weight_decay
        )

    @torch.no_grad()
    def step(
        self, lr: float, update: int, factor: Tensor | None = None, skip: Tensor | None = None
    ) -> None:
        """Update the parameters once, in place; arguments as in FlatAdamW.step."""
        for name, rows in self._parameters.local.items():
            if not rows.numel():
                continue
            device = rows.device
            adamw_(
                AdamWBuffers(
                    rows.view(-1),
                    self._parameters.gradient(name).reshape(-1),
                    self.moments["exp_avg"][name].view(-1),
                    self.moments["exp_avg_sq"][name].view(-1),
                    None,
                    rows.numel() if is_decayed(name) else 0,
                ),
                self._hyperparameters,
                lr,
                update,
                torch.ones((), device=device) if factor is None else factor.float(),
                torch.zeros((), device=device) if skip is None else skip.float(),
            )

    def state(self, world: World) -> Files:
        """Return what this process saves; {} unless it has a part of the first copy."""
        if world.replica:
            return {}
        kinds = {"model": self._parameters.local, **self.moments}
        rows = {f"{kind}/{name}": t for kind, of in kinds.items() for name, t in of.items()}
        return {shard_stem(world.shard_index, world.shards): rows}

    @torch.no_grad()
    def load(self, files: Files) -> None:
        """Set weights and moments to this process's rows of a saved state, sharded or not.

        Raises:
            CheckpointError: the tensors belong to another architecture.
        """
        saved = SavedState(files, self._parameters.shapes)
        for kind, of in {"model": self._parameters.local, **self.moments}.items():
            for name, rows in of.items():
                rows.copy_(saved.rows(kind, name, *self._parameters.rows(name)))


# --- saved states ----------------------------------------------------------------------------


def shard_stem(index: int, count: int) -> str:
    """Return the stem of the file with shard `index` of `count`."""
    return f"shard-{index:05d}-of-{count:05d}"


def is_sharded(files: Mapping[str, Any]) -> bool:
    """Return whether the files of a state are shards, given a mapping of their stems."""
    return any(map(_SHARD.fullmatch, files))


class SavedState:
    """A saved state, whether sharded or not, whose weights and moments can be read by rows.

    Files that `load_checkpoint` has returned are mapped into memory, and read only where needed.

    Args:
        shapes: maps the names of the model's parameters to their shapes, in the model's order.

    Raises:
        CheckpointError: the state has another architecture, or a shard is missing.
    """

    def __init__(self, files: Files, shapes: Mapping[str, torch.Size]) -> None:
        self._files, self._shapes = files, shapes
        stems = sorted(filter(_SHARD.fullmatch, files))
        self._shards = [files[stem] for stem in stems]
        count = int(stems[0].rpartition("-")[2]) if stems else 0
        if stems != [shard_stem(index, count) for index in range(count)]:
            raise CheckpointError(
                f"the saved state should have {count} shards, but has {len(stems)}: "
                f"{', '.join(stems[:4])} …. {REPAIR}"
            )
        self._offsets, offset = {}, 0
        for name in flat_order(shapes):
            self._offsets[name] = offset
            offset += shapes[name].numel()
        saved = self._saved_shapes()
        if saved != {name: tuple(shape) for name, shape in shapes.items()}:
            names = sorted(shapes.keys() | saved.keys())
            differing = [n for n in names if tuple(shapes.get(n, ())) != saved.get(n)]
            raise CheckpointError(
                "the saved state has a different architecture from the config: tensors are missing "
                f"or have other shapes ({', '.join(differing[:4])} …); use the state's config"
            )

    def _saved_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the weights that are saved, by name."""
        if not self._shards:
            return {name: tuple(t.shape) for name, t in self._files.get("model", {}).items()}
        shapes: dict[str, tuple[int, ...]] = {}
        for shard in self._shards:
            for key in shard:
                kind, _, name = key.partition("/")
                if kind == "model":
                    rows, *rest = shard[key].shape
                    shapes[name] = (rows + shapes.get(name, (0,))[0], *rest)
        return shapes

    def rows(self, kind: str, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """Return the rows [start, stop) of a parameter or moment (see KINDS); default: all."""
        shape = self._shapes[name]
        stop = shape[0] if stop is None else stop
        if self._shards:
            parts, first = [], 0
            for shard in self._shards:
                part = shard[f"{kind}/{name}"]
                parts.append(part[max(0, start - first) : max(0, stop - first)])
                first += len(part)
            return torch.cat(parts)
        if kind == "model":
            return self._files["model"][name][start:stop]
        width, offset = shape[1:].numel(), self._offsets[name]
        flat = self._files["optimizer"][kind][offset + start * width : offset + stop * width]
        return flat.reshape(stop - start, *shape[1:])

    def unsharded(self) -> Files:
        """Return the files of the same state as one process saves it."""
        if not self._shards:
            return self._files
        state: Files = {"model": {name: self.rows("model", name) for name in self._shapes}}
        state["optimizer"] = {
            kind: torch.cat([self.rows(kind, name).flatten() for name in self._offsets])
            for kind in MOMENTS
        }
        return state | {stem: t for stem, t in self._files.items() if not _SHARD.fullmatch(stem)}


def unsharded(files: Files, config: ModelConfig) -> Files:
    """Return the files of a model's saved state as one process saves it; see SavedState."""
    if not is_sharded(files):
        return files
    with torch.device("meta"):
        shapes = {name: p.shape for name, p in GPTNeoX(config).named_parameters()}
    return SavedState(files, shapes).unsharded()


def save_sharded(parent: Path, step: int, files: Files, meta: dict[str, Any], world: World) -> None:
    """Write the state of a step under `parent`; every process calls this with its own `files`.

    The first process makes the folder, and renames it when all have written their shards. Every
    process hashes its own files. An existing folder of that step is renamed to `*.corrupt`.

    Raises:
        TrainingError: a process could not write its files. Every process raises the error.
    """
    with contextlib.ExitStack() as stack:
        name, problem = "", ""
        if world.is_rank_zero:
            try:
                if not parent.is_dir():
                    raise FileNotFoundError(f"the folder {parent} no longer exists")
                if (target := step_folder(parent, step)).exists():
                    set_aside(target, CheckpointError("training has come to this step again"))
                name = stack.enter_context(atomic_dir(target)).name
            except OSError as error:
                problem = not_saved(parent, step, error)
        folder, written = parent / world.from_rank_zero(name), {}
        try:
            # without a name, the first process could not make the folder
            for stem, tensors in files.items() if folder != parent else ():
                path = folder / f"{stem}.safetensors"
                save_safetensors(save_file, {n: t.cpu() for n, t in tensors.items()}, path)
                with open(path, "rb") as file:
                    os.fsync(file.fileno())
                written[path.name] = describe_file(path)
        except OSError as error:
            problem = not_saved(parent, step, error)
        answers = world.gather((written, problem))
        if failed := [f"process {rank}: {text}" for rank, (_, text) in enumerate(answers) if text]:
            raise TrainingError(failed[0])
        if world.is_rank_zero:
            try:
                write_manifest(folder, step, meta, {k: v for w, _ in answers for k, v in w.items()})
                stack.close()
            except OSError as error:
                raise TrainingError(not_saved(parent, step, error)) from error
    world.barrier()
