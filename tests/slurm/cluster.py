"""A real Slurm on loopback: one node, two CPUs, and accounting, without systemd.

All that it writes is in one temporary folder. Its daemons run as the user who starts them.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

PACKAGES = {"munged": "munge", "slurmctld": "slurm-wlm", "slurmdbd": "slurmdbd", "mariadbd": "mariadb-server"}
"""Programs, and the packages of Debian and Ubuntu that have them."""

_PATH = os.pathsep.join([os.environ["PATH"], "/usr/sbin"])  # where daemons are
_SECONDS = 60.0  # that a daemon may take to start or to stop

_SLURM = """\
ClusterName=bnlab
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
SlurmUser={user}
SlurmdUser={user}
NodeName={host} NodeAddr=127.0.0.1 CPUs=2
PartitionName=cpu Nodes={host} Default=YES

AuthType=auth/munge
# A job that is requeued waits until its credential has expired: 120 s by default.
AuthInfo=socket={folder}/munge.socket,cred_expire=5
# Seconds in which it may go on after SIGTERM: 30 by default.
KillWait=1
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={accounting_port}
AccountingStoragePass={folder}/munge.socket

StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid

# Neither cgroups nor MPI; two CPUs whatever the machine has.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
"""

_ACCOUNTING = """\
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort={accounting_port}
SlurmUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser={user}
PidFile={folder}/slurmdbd.pid
"""


def describe_missing() -> str:
    """Say which packages to install; empty where all programs are there."""
    missing = [package for program, package in PACKAGES.items() if shutil.which(program, path=_PATH) is None]
    if not missing:
        return ""
    return f"no Slurm here to run sweeps on: apt-get install --no-install-recommends {' '.join(missing)}"


class Cluster:
    """A running Slurm.

    Attributes:
        environment: variables by which programs find it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {
            **os.environ,
            "PATH": _PATH,
            "SLURM_CONF": str(folder / "slurm.conf"),
            "MYSQL_UNIX_PORT": str(folder / "mariadb.socket"),  # slurmdbd has no setting for it
        }

    def call(self, *words: str) -> str:
        """Run a program, such as squeue, to its end; what it prints."""
        done = subprocess.run(words, env=self.environment, capture_output=True, encoding="utf-8")
        if done.returncode:
            raise RuntimeError(f"{' '.join(words)}: {done.stderr}")
        return done.stdout

    def succeeds(self, *words: str) -> bool:
        """Run a program to its end, and find out if it ends well."""
        return subprocess.run(words, env=self.environment, capture_output=True).returncode == 0

    def is_idle(self) -> bool:
        """Find out if the node runs nothing and takes jobs."""
        return self.call("sinfo", "--noheader", "--format=%T").strip() == "idle"

    def find_process(self, job: str) -> int:
        """Find the process of a job's first step."""
        number = self.call("squeue", "--noheader", f"--jobs={job}", "--format=%A").strip()  # of an array's job too
        lines = self.call("scontrol", "listpids", f"{number}.0").splitlines()
        return int(lines[1].split()[0])

    @contextlib.contextmanager
    def run_daemon(self, *words: str) -> Iterator[None]:
        """Run a daemon in the block; what it prints is in the folder. Jobs that it has started are not ended."""
        log = self.folder / f"{words[0]}.log"
        with log.open("wb") as output:
            daemon = subprocess.Popen(
                words, env=self.environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )
        try:
            yield
        finally:
            daemon.terminate()
            daemon.wait(_SECONDS)


@contextlib.contextmanager
def start_cluster() -> Iterator[Cluster]:
    """Start a cluster whose node is idle; after the block its jobs and its daemons end, and its folder is removed."""
    # The names of sockets may have 107 characters, which pytest's folders exceed.
    with tempfile.TemporaryDirectory(prefix="slurm", dir="/tmp") as name, contextlib.ExitStack() as stack:
        cluster = Cluster(Path(name))
        _write_files(cluster.folder)
        _start_munge(cluster, stack)
        _start_database(cluster, stack)

        stack.enter_context(cluster.run_daemon("slurmdbd", "-D"))
        wait_until(lambda: cluster.succeeds("sacctmgr", "--immediate", "add", "cluster", "bnlab"))
        stack.enter_context(cluster.run_daemon("slurmctld", "-D"))
        stack.enter_context(cluster.run_daemon("slurmd", "-D"))
        wait_until(lambda: cluster.succeeds("scontrol", "ping") and cluster.is_idle())
        try:
            yield cluster
        finally:
            cluster.call("scancel", "--user", getpass.getuser())
            wait_until(cluster.is_idle)


def _write_files(folder: Path) -> None:
    """Write the configuration, and the key of munge."""
    values = {
        "folder": folder,
        "user": getpass.getuser(),
        "host": socket.gethostname().partition(".")[0],
        "controller_port": _find_port(),
        "node_port": _find_port(),
        "accounting_port": _find_port(),
    }
    (folder / "state").mkdir()
    (folder / "spool").mkdir()
    (folder / "slurm.conf").write_text(_SLURM.format(**values), encoding="utf-8")
    _write_secret(folder / "slurmdbd.conf", _ACCOUNTING.format(**values).encode())
    _write_secret(folder / "munge.key", secrets.token_bytes(128))


def _write_secret(path: Path, content: bytes) -> None:
    """Write a file that only its owner may read, as its daemon demands."""
    path.touch(mode=0o600)
    path.write_bytes(content)


def _find_port() -> int:
    """Find a port of this machine that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def _start_munge(cluster: Cluster, stack: contextlib.ExitStack) -> None:
    """Start the daemon by which Slurm's programs know each other."""
    folder = cluster.folder
    files = {
        "socket": folder / "munge.socket",
        "key-file": folder / "munge.key",
        "pid-file": folder / "munge.pid",
        "seed-file": folder / "munge.seed",
        "log-file": folder / "munge.log",
    }
    words = [f"--{name}={path}" for name, path in files.items()]
    stack.enter_context(cluster.run_daemon("munged", "--foreground", "--force", *words))
    wait_until(files["socket"].exists)


def _start_database(cluster: Cluster, stack: contextlib.ExitStack) -> None:
    """Start MariaDB, which the accounting writes to; it is reached through a socket, by this user alone."""
    data = f"--datadir={cluster.folder / 'mariadb'}"
    user = f"--user={getpass.getuser()}"
    path = cluster.folder / "mariadb.socket"
    cluster.call("mariadb-install-db", "--no-defaults", data, user, "--skip-test-db")
    daemon = cluster.run_daemon("mariadbd", "--no-defaults", data, user, f"--socket={path}", "--skip-networking")
    stack.enter_context(daemon)
    wait_until(path.exists)


def wait_until(is_true: Callable[[], bool], seconds: float = _SECONDS) -> None:
    """Wait until a condition is true; TimeoutError if that takes too long."""
    end = time.monotonic() + seconds
    while not is_true():
        if time.monotonic() > end:
            raise TimeoutError(f"not true after {seconds:.0f} s")
        time.sleep(0.2)
