"""Write checkpoints in a background thread, while training continues.

`save` copies the tensors, so later updates cannot change what is written. CUDA tensors are copied
to pinned memory on a separate stream. Only one checkpoint is written at a time, so the next `save`
waits for the previous one. If a write fails, the next `save` or `check` raises its error; at the
latest, the end of the `with` block raises it. A crash leaves a complete checkpoint or none
(pythia_core.training.checkpoint).

On a CPU, training writes without a thread by default: saving is quick, and parallel runs use every
core.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from pythia_core.training.checkpoint import save_checkpoint

Files = dict[str, dict[str, Tensor]]


class CheckpointWriter:
    """A context manager that saves checkpoints and exits only when all of them are on disk.

    Args:
        asynchronous: write in a thread. If false, `save` returns when the checkpoint is on disk.

    Attributes:
        seconds: duration of the last finished save, including the copying of the tensors.
    """

    def __init__(self, asynchronous: bool) -> None:
        self._thread = ThreadPoolExecutor(1, "checkpoint") if asynchronous else None
        self._pending: Future[None] | None = None
        self.seconds = 0.0

    def save(
        self,
        parent: Path,
        step: int,
        files: Files,
        meta: dict[str, Any],
        then: Callable[[], object] = lambda: None,
    ) -> torch.cuda.Event | None:
        """Save tensors, as they are now, with `checkpoint.save_checkpoint`; then call `then`.

        Returns:
            A CUDA event after which the caller may change the tensors; None if no wait is needed.

        Raises:
            TrainingError: this or, with a thread, the previous checkpoint could not be written.
        """
        self.wait()
        started = time.monotonic()
        if self._thread is None:
            self._write(parent, step, files, meta, then, started)
            return None
        copies, copied = snapshot(files)

        def write() -> None:
            """Wait until the tensors have been copied, then write the copies."""
            if copied is not None:
                copied.synchronize()
            self._write(parent, step, copies, meta, then, started)

        self._pending = self._thread.submit(write)
        return copied

    def _write(
        self,
        parent: Path,
        step: int,
        files: Files,
        meta: dict[str, Any],
        then: Callable[[], object],
        started: float,
    ) -> None:
        """Write a checkpoint, call `then`, and set `seconds` to the time since `started`."""
        save_checkpoint(parent, step, files, meta)
        then()
        self.seconds = time.monotonic() - started

    @property
    def busy(self) -> bool:
        """Whether a write is in progress."""
        return self._pending is not None and not self._pending.done()

    def check(self) -> None:
        """If the last write has failed, raise its error. Do not wait for a write in progress."""
        if self._pending is not None and self._pending.done():
            self.wait()

    def wait(self) -> None:
        """Wait for the write in progress, and raise its error if it fails."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def __enter__(self) -> CheckpointWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self.wait()
        except Exception:
            if error is None:  # otherwise, the error that ended the `with` block is raised
                raise
        finally:
            if self._thread is not None:
                self._thread.shutdown()


def snapshot(files: Files) -> tuple[Files, torch.cuda.Event | None]:
    """Copy all tensors to host memory. CUDA tensors (of one device) are copied in the background.

    Returns:
        The copies, and a CUDA event that marks their completion (None without CUDA tensors).
    """
    on_device = [t for tensors in files.values() for t in tensors.values() if t.is_cuda]
    if not on_device:
        return _map(files, lambda t: t.detach().clone()), None
    side = torch.cuda.Stream(on_device[0].device)
    side.wait_stream(torch.cuda.current_stream(side.device))
    with torch.cuda.stream(side):
        copies = _map(files, _to_pinned)
        copied = torch.cuda.Event()
        copied.record()
    for tensor in on_device:
        tensor.record_stream(side)  # its memory is not reused before the copy is done
    return copies, copied


def _to_pinned(tensor: Tensor) -> Tensor:
    """Start to copy a tensor to pinned host memory; return the copy, which may be incomplete."""
    tensor = tensor.detach()
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return host.copy_(tensor, non_blocking=True)


def _map(files: Files, function: Callable[[Tensor], Any]) -> dict[str, dict[str, Any]]:
    """Apply a function to every tensor, and keep the names of files and tensors."""
    return {
        stem: {name: function(t) for name, t in tensors.items()} for stem, tensors in files.items()
    }
