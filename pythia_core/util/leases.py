"""Lease jobs through a shared folder, so that only one process, on any machine, does each job.

The lease is a marker file (filelock's SoftFileLease). Its owner renews it from a thread; another
process may take it once it has seen no renewal for LEASE_SECONDS of its own monotonic clock, so
clocks that differ between machines do not matter. If the owner was a process of the same machine
and is dead, the lease is free at once.

A lease is not a lock: its owner may be stopped or cut off for so long that another process takes
the job, and may then go on. So an owner calls `Lease.check` before it writes. Results are complete
files or folders that are renamed into place, and they are equal whoever computes them, so a job
that two processes did is recorded once.
"""

from __future__ import annotations

import math
import os
import secrets
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import LeaseSettingsMismatch, OwnerRecord, SoftFileLease, Timeout

from pythia_core.errors import PythiaError, TakenElsewhere
from pythia_core.util.progress import print_line

LEASE_SECONDS = 60.0
"""Seconds without renewal after which another process may take a lease; the same for all."""
CHECK_SECONDS = 5.0
"""A lease that was checked this recently is not checked again."""
POLL_SECONDS = 1.0
"""Time between two attempts to take a lease that another process holds."""

_observed: dict[Path, SoftFileLease] = {}
"""The markers of others. A lease object remembers when it last saw its marker change."""
_unchanged: dict[Path, tuple[tuple[int, ...], float]] = {}
"""The same for markers of namesakes; see `_is_namesake`."""


class Lease:
    """A lease that this process holds."""

    def __init__(self, lease: SoftFileLease) -> None:
        self._lease = lease
        self._proven = time.monotonic()

    @contextmanager
    def explains_errors(self) -> Iterator[None]:
        """Raise TakenElsewhere instead of an error in the block, if the lease was lost.

        The process that has taken the lease deletes what this one was writing.
        """
        try:
            yield
        except (PythiaError, OSError):
            self.check(at_once=True)
            raise

    def check(self, at_once: bool = False) -> None:
        """Check that the lease is still held, unless that was done in the last CHECK_SECONDS.

        With `at_once`, always check. The monotonic clock also runs while the process is stopped,
        so the first check after a long stop reads the marker. If the marker's folder was moved or
        deleted, nobody has taken the lease; whoever writes there next will notice.

        Raises:
            TakenElsewhere: another process has taken the lease, or the marker was deleted.
        """
        if not at_once and time.monotonic() - self._proven < CHECK_SECONDS:
            return
        started = time.monotonic()
        for _ in range(3):  # a contender that judges the marker moves it away for a moment
            owner = self._lease.owner
            if owner is not None and owner.token == self._lease.token:
                self._proven = started
                return
            time.sleep(0.1)
        folder = Path(self._lease.lock_file).parent
        if not folder.is_dir():
            return
        raise TakenElsewhere(
            f"{folder} was taken over by {_describe(owner)}, because "
            f"this process had been stopped or cut off for more than {LEASE_SECONDS:.0f} s; "
            "nothing more was written. Run the same command again to wait for the result"
        )


def marker_of(file: Path) -> Path:
    """Return the marker, next to a file, of the lease on computing that file."""
    return file.with_name(f".{file.stem}.lease")


@contextmanager
def leased(marker: Path, wait: bool | float = True, job: str = "") -> Iterator[Lease]:
    """Hold the lease `marker` inside the block. Its folder is made if necessary.

    Args:
        wait: whether to wait for a process that holds the lease, or for how many seconds. If so, a
            line says who holds it.
        job: what that process does, e.g. "training 85k", for the line.

    Raises:
        TakenElsewhere: another process holds the lease, and `wait` is false, or that many seconds
            have passed.
    """
    reported, until = False, time.monotonic() + (math.inf if wait is True else wait)
    while not (lease := _take(marker)):
        holder = _describe(SoftFileLease(marker, lease_duration=LEASE_SECONDS).owner)
        if time.monotonic() >= until:
            raise TakenElsewhere(
                f"{marker.parent} is in use by {holder}. Wait for that process or stop it; then "
                "run the same command again"
            )
        if not reported:
            print_line(f"waiting for {holder}: {job or marker.parent}")
            reported = True
        time.sleep(POLL_SECONDS)
    try:
        yield Lease(lease)
    finally:
        lease.release()


def is_free(marker: Path) -> bool:
    """Return whether this process could take a lease now. An expired lease is removed.

    Call this repeatedly in one process: only a process that has seen the marker before knows how
    long it has not changed.
    """
    if not os.path.lexists(marker):
        _forget(marker)
        return True
    if lease := _take(marker):
        lease.release()
    return lease is not None


def _take(marker: Path) -> SoftFileLease | None:
    """Try to take a lease, even from a dead or silent owner; None if another process holds it."""
    marker.parent.mkdir(parents=True, exist_ok=True)
    lease = _observed.get(marker)
    if lease is None:
        lease = _observed[marker] = SoftFileLease(marker, lease_duration=LEASE_SECONDS)
    if (owner := lease.owner) and _is_namesake(owner) and not _is_silent(marker):
        return None
    _remove_empty(marker)
    try:
        lease.acquire(blocking=False)
    except (Timeout, LeaseSettingsMismatch):  # the latter if another version made the lease
        return None
    except OSError as error:  # e.g. a full disk
        raise OSError(error.errno, error.strerror, str(marker)) from error
    _forget(marker)
    return lease


def _forget(marker: Path) -> None:
    _observed.pop(marker, None)
    _unchanged.pop(marker, None)


def _is_namesake(owner: OwnerRecord) -> bool:
    """Return whether an owner ran on another machine that has this one's name, or before a reboot.

    `filelock` takes a lease at once if its owner ran on a machine of this name and no such process
    is alive here. Cloned machines and containers can share a name (containers of one machine are
    told apart by their process namespaces), and would steal each other's leases. The high bits of
    `start` identify the boot of the owner's machine, where the system knows it.
    """
    here = _boot_id()
    boot = (owner.start or 0) >> 64
    return boot not in (0, here) and here != 0 and owner.hostname.startswith(socket.gethostname())


def _boot_id() -> int:
    try:
        text = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")
        return int(text.strip().replace("-", ""), 16)
    except (OSError, ValueError):
        return 0


def _remove_empty(marker: Path) -> None:
    """Remove a marker that has stayed empty for LEASE_SECONDS, which `filelock` would never do.

    Its owner was killed between making the file and writing to it.
    """
    try:
        stat = os.stat(marker)
    except OSError:
        return
    if stat.st_size or not _is_silent(marker):
        return
    aside = marker.with_name(f"{marker.name}.{secrets.token_hex(4)}")
    with suppress(OSError):
        os.rename(marker, aside)
        try:
            if os.stat(aside).st_ino != stat.st_ino:  # another process was faster: it is its marker
                os.link(aside, marker)
        finally:
            os.unlink(aside)


def _is_silent(marker: Path) -> bool:
    """Return whether this process has seen a marker unchanged for LEASE_SECONDS."""
    try:
        stat = os.stat(marker)
    except OSError:
        return False
    state, now = (stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns), time.monotonic()
    if (seen := _unchanged.get(marker)) is None or seen[0] != state:
        _unchanged[marker] = state, now
        return False
    return now - seen[1] >= LEASE_SECONDS


def _describe(owner: OwnerRecord | None) -> str:
    if owner is None:
        return "another process"
    return f"process {owner.pid} on {owner.hostname.partition('?')[0]}"
