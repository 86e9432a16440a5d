"""What hydra/launcher= chooses beside Hydra's own `basic`, and the settings of each, as hydra.launcher.n_jobs=2.

They have the names and the defaults of Hydra's plugins for joblib and submitit, which bnlab does not need: it calls
joblib and submitit itself.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore


@dataclass
class JoblibLauncher:
    """Several processes of this machine.

    Attributes:
        n_jobs: how many at once; -1: as many as there are cores.
    """

    n_jobs: int = -1


@dataclass
class SubmititLauncher:
    """Processes of this machine as jobs of a queue, which is how settings for a cluster are tried out.

    Attributes:
        timeout_min: minutes after which a job is ended.
        cpus_per_task, gpus_per_node, tasks_per_node, nodes: what a job gets.
        mem_gb: GB of memory on each node.
        stderr_to_stdout: whether both go to one file.
    """

    timeout_min: int = 60
    cpus_per_task: int | None = None
    gpus_per_node: int | None = None
    tasks_per_node: int = 1
    mem_gb: int | None = None
    nodes: int = 1
    stderr_to_stdout: bool = False


@dataclass
class SlurmLauncher(SubmititLauncher):
    """Jobs of Slurm.

    Attributes:
        partition, qos, comment, constraint, exclude, gres, account, cpus_per_gpu, gpus_per_task, mem_per_gpu,
            mem_per_cpu: as in Slurm's sbatch.
        signal_delay_s: seconds before its time limit at which a job is told to stop.
        max_num_timeout: how often a job that met its time limit is put back into the queue.
        additional_parameters: further ones of sbatch, by name.
        array_parallelism: the most jobs that run at once.
        setup: commands that are run before each job.
    """

    partition: str | None = None
    qos: str | None = None
    comment: str | None = None
    constraint: str | None = None
    exclude: str | None = None
    gres: str | None = None
    account: str | None = None
    cpus_per_gpu: int | None = None
    gpus_per_task: int | None = None
    mem_per_gpu: str | None = None
    mem_per_cpu: str | None = None
    signal_delay_s: int = 120
    max_num_timeout: int = 0
    additional_parameters: dict[str, Any] = field(default_factory=dict)
    array_parallelism: int = 256
    setup: list[str] | None = None


_LAUNCHERS = {"joblib": JoblibLauncher, "submitit_local": SubmititLauncher, "submitit_slurm": SlurmLauncher}


def register_launchers() -> None:
    """Make these launchers known to Hydra, in place of those of plugins that may be installed for other programs."""
    store = ConfigStore.instance()
    for name, launcher in _LAUNCHERS.items():
        store.store(group="hydra/launcher", name=name, node=launcher)
