"""Networks that were trained on a CPU and on a GPU, on planted tables."""

from pathlib import Path

import pandas as pd
import pytest

from experiments import devices


def write(folder: Path, device: str, accuracies: dict[int, float]) -> None:
    """Write the tables of an experiment: networks by seed, with an accuracy half-way that does not count."""
    folder.joinpath("tables").mkdir(parents=True)
    runs = []
    rows = []
    for seed, accuracy in accuracies.items():
        runs.append(
            {"run": f"a/seed_{seed}", "steps": 10, "device": device, "norm": "batch", "batch_size": 4, "seed": seed}
        )
        common = {"run": f"a/seed_{seed}", "estimator": "exact", "momentum": None, "split": "test", "shift": "none"}
        common["statistics_split"] = "train"
        rows += [{**common, "step": 10, "accuracy": accuracy}, {**common, "step": 5, "accuracy": 0.0}]
    pd.DataFrame(runs).to_parquet(folder / "tables" / "runs.parquet")
    pd.DataFrame(rows).astype({"momentum": float}).to_parquet(folder / "tables" / "evaluations.parquet")


def test_pairs_are_networks_of_one_name(tmp_path: Path) -> None:
    write(tmp_path / "one", "x86_64", {0: 0.90, 1: 0.91, 2: 0.5})
    write(tmp_path / "other", "NVIDIA H200", {0: 0.91, 1: 0.93, 3: 0.5})

    pairs = devices.find_pairs(tmp_path)
    (row,) = devices.compare(pairs).to_dict("records")

    assert pairs["run"].tolist() == ["a/seed_0", "a/seed_1"]
    assert row["mean"] == pytest.approx(1.5)
    assert (row["n"], row["networks"]) == (2, 2)


@pytest.mark.parametrize(
    ("trained_on", "is_said"), [(["x86_64"], False), (["NVIDIA H200"], False), (["x86_64", "NVIDIA H200"], True)]
)
def test_it_is_said_of_mixed_experiments_alone(trained_on: list[str], is_said: bool) -> None:
    words = devices.describe_devices(pd.DataFrame({"device": trained_on}))
    assert ("| batch, 16 | exact statistics |" in words) == is_said
