"""python -m experiments.sweep experiment=quickstart: train what is missing, measure, write tables."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import hydra
from hydra.conf import HydraConf
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from bnlab.harness.config import Config, network_hash
from bnlab.harness.errors import UserError
from experiments.compose import jobs, register

_HYDRA_ONLY = ("--help", "-h", "--hydra-help", "--version", "--cfg", "-c", "--info", "-i", "--shell-completion")
_FOLDERS = ("experiment=", "name=", "results=")  # overrides that say where the tables are
_JOBS = "BNLAB_JOBS"  # in the environment, for the launcher's processes: how many jobs there are


def main() -> int:
    """Check everything, then hand over to Hydra and its launcher; exit 2 for a user's mistake."""
    words = sys.argv[1:]
    register()
    if any(word.split("=")[0] in _HYDRA_ONLY for word in words):
        _launch()
        return 0
    overrides = [word for word in words if not word.startswith("-")]
    multirun = bool({"-m", "--multirun"} & set(words))
    unknown = [w for w in words if w.startswith("-") and w not in ("-m", "--multirun")]
    try:
        if unknown:
            raise UserError(f"{unknown[0]}: no such option; there are -m and --help")
        planned, words = jobs(overrides, multirun)
        if planned[0].dry_run:
            return _dry_run(planned)
        return _run(planned, words)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {error}; what is finished is kept, the same command continues", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped; the same command continues", file=sys.stderr)
        return 130


def _run(planned: list[Config], words: list[str]) -> int:
    from bnlab.harness.jobs import prepare
    from bnlab.harness.planning import outline

    prepare(planned)
    print(outline(planned), flush=True)
    started = time.perf_counter()
    sys.argv[1:] = words
    os.environ[_JOBS] = str(len(planned))
    os.environ["HYDRA_FULL_ERROR"] = "1"  # lets errors through to `main`, which words them
    _launch()
    return _closed(planned, time.perf_counter() - started)


@hydra.main(version_base="1.3", config_path="../conf", config_name="config")
def _launch(composed: DictConfig) -> None:
    from bnlab.harness.jobs import attempt

    register()
    config = OmegaConf.to_object(composed)
    if not isinstance(config, Config):
        raise TypeError(f"expected a Config, Hydra composed {type(config).__name__}")
    if config.threads is None and HydraConfig.get().runtime.choices["hydra/launcher"] != "basic":
        config.threads = 1  # the processes share the cores
    _announce(HydraConfig.get())
    attempt(config)


def _announce(hydra_config: HydraConf) -> None:
    """Of many jobs, which one begins."""
    if hydra_config.mode == RunMode.MULTIRUN:
        settings = [word for word in hydra_config.overrides.task if not word.startswith(_FOLDERS)]
        print(f"job {int(hydra_config.job.num) + 1}/{os.environ[_JOBS]}  {' '.join(settings)}", flush=True)


def _closed(planned: list[Config], seconds: float) -> int:
    """Put the tables together and say what there is now."""
    from bnlab.harness import tables
    from bnlab.harness.jobs import failures

    first = planned[0]
    folder = Path(first.results) / first.name
    found = tables.write_tables(folder, first.csv)
    wanted = {f"{network_hash(config)}/seed_{config.seed}" for config in planned}
    runs = found["runs"][found["runs"]["run"].isin(wanted)]
    failed = [path for config in planned for path in failures(config)]
    print(f"done in {seconds:.0f} s; {folder}/tables/")
    for name, frame in found.items():
        if len(frame):
            print(f"  {name + '.parquet':20}{len(frame):>9,} rows")
    for row in runs[runs["status"] == "diverged"].itertuples():
        print(f"{row.run} diverged: its rows end there")
    for path in sorted(set(failed)):
        print(f"failed: {path}")
    print(_next(first))
    return 1 if failed else 0


def _next(config: Config) -> str:
    named = [word for word in sys.argv[1:] if word.startswith(_FOLDERS)]
    if any(word.startswith("experiment=") for word in named):
        return f"next: python -m experiments.figures {' '.join(named)}"
    elsewhere = "" if config.results == "results" else f', "{config.results}"'
    return f'next: bnlab.harness.load("{config.name}"{elsewhere})'


def _dry_run(planned: list[Config]) -> int:
    from bnlab.harness.planning import plan

    for line in plan(planned):
        print(line)
    return 0


if __name__ == "__main__":
    sys.exit(main())
