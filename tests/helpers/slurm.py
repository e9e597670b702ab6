"""A real Slurm of two nodes on this machine, for tests: Debian's packages, no root services.

`python tests/helpers/slurm.py` fetches the packages into the user's cache (3.4 MB, needs apt).
"""

from __future__ import annotations

import getpass
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

PACKAGES = (
    "slurmctld",
    "slurmd",
    "slurm-client",
    "slurm-wlm-basic-plugins",
    "libmunge2",
    "libhwloc15",
)
NODES = ("n1", "n2")
START_SECONDS = 60.0
STOP_SECONDS = 20.0

# A requeued job waits for two minutes (the lifetime of a credential); `start_now` ends the wait.
CONF = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/none
CredType=cred/none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SwitchType=switch/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,batch_sched_delay=1,bf_interval=1
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
PluginDir={plugins}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
ReturnToService=2
JobRequeue=1
KillWait={kill_wait}
SlurmdTimeout=20
MinJobAge=3600
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs={cpus}
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs={cpus}
PartitionName=test Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP
"""


def _cached() -> Path:
    cache_home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache_home) / "pythia-book" / "slurm-packages"


def fetch() -> Path:
    """Return the folder with the unpacked packages, from the cache or from apt; needs no root.

    Raises RuntimeError with apt's or dpkg's message.
    """
    tree = _cached()
    if tree.is_dir():
        return tree
    if not (shutil.which("apt-get") and shutil.which("dpkg")):
        raise RuntimeError("there is no apt-get")
    tree.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=tree.parent) as temporary:
        unpacked = Path(temporary) / "tree"
        _run(["apt-get", "-qq", "download", *PACKAGES], temporary)
        for package in sorted(Path(temporary).glob("*.deb")):
            _run(["dpkg", "-x", str(package), str(unpacked)], temporary)
        with suppress(OSError):  # another process was faster
            unpacked.rename(tree)
    return tree


def _run(command: list[str], folder: str) -> None:
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"{command[0]} took more than 120 s") from None
    if done.returncode:
        raise RuntimeError(f"{command[0]}: {done.stderr.strip() or done.returncode}")


@cache
def missing() -> str | None:
    """Say why Slurm cannot be started here, or return None; fetches the packages if need be."""
    if sys.platform != "linux":
        return "needs Linux"
    try:
        tree = fetch()
    except (RuntimeError, OSError) as error:
        return f"Slurm's packages are missing: {error}"
    for program in ("slurmctld-wlm", "slurmd-wlm"):
        path = tree / "usr" / "sbin" / program
        linked = subprocess.run(
            ["ldd", str(path)], capture_output=True, text=True, env=_environment(tree)
        )
        lacking = [line.split()[0] for line in linked.stdout.splitlines() if "not found" in line]
        if linked.returncode or lacking:
            return f"{program} cannot run here: {', '.join(lacking) or linked.stderr.strip()}"
    return None


def _plugins(tree: Path) -> Path:
    return next((tree / "usr" / "lib").glob("*/slurm-wlm"))


def _environment(tree: Path) -> dict[str, str]:
    plugins = _plugins(tree)
    binaries = [str(tree / "usr" / "bin"), str(tree / "usr" / "sbin")]
    libraries = [str(plugins), str(plugins.parent)]
    if before := os.environ.get("LD_LIBRARY_PATH"):
        libraries.append(before)
    return {
        **os.environ,
        "PATH": os.pathsep.join([*binaries, os.environ["PATH"]]),
        "LD_LIBRARY_PATH": os.pathsep.join(libraries),
    }


@contextmanager
def two_nodes(folder: Path, cpus: int = 1, kill_wait: int = 2) -> Iterator[dict[str, str]]:
    """Start a controller and the nodes n1 and n2, and yield the environment for sbatch and so on.

    Logs, state and slurm.conf go to `folder`. Each node has `cpus` CPUs, and no GPU. A
    canceled job has `kill_wait` seconds between SIGTERM and SIGKILL. At the end, jobs are
    canceled and the daemons stopped. Raises RuntimeError, with the daemons' logs, if the nodes
    are not idle within `START_SECONDS`.
    """
    tree = fetch()
    folder = folder.resolve()
    (folder / "state").mkdir(parents=True)
    conf = folder / "slurm.conf"
    conf.write_text(
        CONF.format(
            host=socket.gethostname(),
            user=getpass.getuser(),
            ports=_free_ports(3),
            plugins=_plugins(tree),
            folder=folder,
            cpus=cpus,
            kill_wait=kill_wait,
        )
    )
    environment = {**_environment(tree), "SLURM_CONF": str(conf)}
    sbin = tree / "usr" / "sbin"
    step = ["-d", str(sbin / "slurmstepd-wlm")]
    commands = [[str(sbin / "slurmctld-wlm"), "-D", "-f", str(conf)]]
    for node in NODES:
        (folder / node).mkdir()
        commands.append([str(sbin / "slurmd-wlm"), "-D", "-N", node, "-f", str(conf), *step])
    daemons: list[subprocess.Popen[bytes]] = []
    try:
        for command, name in zip(commands, ("slurmctld", *NODES), strict=True):
            with (folder / f"{name}.log").open("wb") as log:
                daemons.append(
                    subprocess.Popen(
                        command,
                        env=environment,
                        cwd=folder,
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=log,
                        start_new_session=True,  # Ctrl-C must not end it before its jobs
                    )
                )
        _wait_until_idle(daemons, folder, environment)
        yield environment
    finally:
        _stop(daemons, environment)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def _wait_until_idle(
    daemons: list[subprocess.Popen[bytes]], folder: Path, environment: dict[str, str]
) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        states = _output(["sinfo", "-h", "-N", "-o", "%N %t"], environment)
        if states.splitlines() == [f"{node} idle" for node in NODES]:
            return
        if any(daemon.poll() is not None for daemon in daemons):
            break
        time.sleep(0.2)
    logs = "\n".join(
        f"{path.name}: {path.read_text(errors='replace')[-1500:]}"
        for path in sorted(folder.glob("*.log"))
    )
    raise RuntimeError(f"Slurm did not start\n{logs}")


def job_ids(environment: Mapping[str, str]) -> list[str]:
    """Return the ids of the jobs that wait or run."""
    return _output(["squeue", "--noheader", "--array", "--format=%i"], environment).split()


def requeue(job: str, environment: dict[str, str]) -> None:
    """Requeue a running job, and let it start at once (see `start_now`)."""
    subprocess.run(["scontrol", "requeue", job], env=environment, check=True, timeout=30)
    start_now(job, environment)


def start_now(job: str, environment: dict[str, str]) -> None:
    """Let a job that was requeued start now instead of two minutes later.

    Raises RuntimeError if it is not pending within `STOP_SECONDS`.
    """
    end = time.monotonic() + STOP_SECONDS
    # until its processes have ended, a requeued job counts as completing and cannot be updated
    while "PENDING" not in _output(["squeue", "-h", "-j", job, "-o", "%T"], environment):
        if time.monotonic() > end:
            raise RuntimeError(f"job {job} was not requeued within {STOP_SECONDS:.0f} s")
        time.sleep(0.2)
    time.sleep(2)  # a credential of the second in which the old one was revoked is refused
    update = ["scontrol", "update", f"JobId={job}", "StartTime=now"]
    subprocess.run(update, env=environment, check=True, timeout=30)


def _output(command: list[str], environment: Mapping[str, str]) -> str:
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30)
    return done.stdout


def _stop(daemons: list[subprocess.Popen[bytes]], environment: dict[str, str]) -> None:
    """Cancel all jobs, wait until they have ended, then stop the daemons."""
    with suppress(subprocess.TimeoutExpired):
        end = time.monotonic() + STOP_SECONDS
        while _output(["squeue", "-h", "-o", "%i"], environment) and time.monotonic() < end:
            for node in NODES:
                _output(["scancel", "--state=RUNNING", f"--nodelist={node}"], environment)
            _output(["scancel", "--state=PENDING", f"--user={getpass.getuser()}"], environment)
            time.sleep(0.5)
    for daemon in reversed(daemons):
        daemon.send_signal(signal.SIGTERM)
    for daemon in daemons:
        try:
            daemon.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()


if __name__ == "__main__":
    if (reason := missing()) is not None:
        sys.exit(reason)
