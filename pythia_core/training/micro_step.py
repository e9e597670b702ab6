"""Forward and backward of one micro-batch, in each of the modes of pythia_core.training.execution.

Every mode does the same to the same tensors: it adds the gradient to the parameters' `.grad` and
the loss to a 0-dim fp64 sum. Nothing waits for the device. A CUDA graph is recorded for every shape
of rows that comes: `prepare` must be told of it while gradient and sum may still be spoilt.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pythia_core.model import GPTNeoX, Rotary
from pythia_core.training.execution import Execution

Replay = Callable[[], object]
WARM_UP = 3
"""Passes before recording: lazy initialisation and autotuning must be over."""


class MicroStep:
    """Calls add a share of the mean loss of some rows, and its gradient.

    Args:
        total: 0-dim fp64, takes the losses. scale: 0-dim, of the loss in the backward, or None.
        capture: records a function as one that repeats it on the same memory.
    """

    def __init__(
        self,
        model: GPTNeoX,
        execution: Execution,
        total: Tensor,
        scale: Tensor | None = None,
        capture: Callable[[Replay], Replay] | None = None,
    ) -> None:
        model.recompute = execution.recompute
        self._model, self._total, self._scale = model, total, scale
        self._loss = model.loss
        if execution.mode == "compile":
            self._loss = torch.compile(model.loss, dynamic=False)
        self._capture = capture or capture_cuda
        self._graphs: dict[tuple, tuple[Tensor, Replay, Rotary]] | None = (
            {} if execution.mode == "graph" else None
        )

    def prepare(self, parts: Sequence[Tensor], n_rows: int) -> None:
        """Record what is new among these micro-batches; spoils gradient and sum."""
        for rows in parts:
            # made outside of what is compiled or recorded, and kept as long as a graph reads them
            tables = self._model.rotary(rows.shape[1] - 1, rows.device)
            key = (tuple(rows.shape), n_rows)
            if self._graphs is not None and key not in self._graphs:
                fixed = rows.clone()
                repeat = self._capture(lambda fixed=fixed: self._run(fixed, n_rows))
                self._graphs[key] = fixed, repeat, tables

    def __call__(self, rows: Tensor, n_rows: int) -> None:
        """Add loss and gradient of `rows` (micro, S+1), a part of a batch of `n_rows`."""
        if self._graphs is None:
            self._run(rows, n_rows)
            return
        fixed, repeat, _ = self._graphs[tuple(rows.shape), n_rows]
        fixed.copy_(rows)
        repeat()

    def _run(self, rows: Tensor, n_rows: int) -> None:
        loss = self._loss(rows) * (len(rows) / n_rows)
        self._total.add_(loss.detach())
        (loss if self._scale is None else loss * self._scale).backward()


def capture_cuda(function: Replay) -> Replay:
    """A CUDA graph of `function`, which ran a few times before and must not wait for the device."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP):
            function()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    # "thread_local": a checkpoint may be written by another thread meanwhile
    with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
        function()
    return graph.replay
