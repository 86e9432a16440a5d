"""Effects for the claims of `activations`."""

from __future__ import annotations

from tests.experiments.planted import EMA, Effect, Value, sign


def misplaced(share: float) -> dict[str, Value]:
    """A share of the EMA's values in the right of two bins that exact statistics put in the left."""

    def value(row: dict[str, object]) -> float:
        moved = (share + 0.001 * int(str(row["seed"]))) * (row["estimator"] == "ema")
        return 0.5 + (moved if row["left"] == 0 else -moved)

    return {"share": value}


def effect(holds: float, fails: float, share: float) -> Effect:
    common = {"estimators": [EMA, ("exact", None)], "sizes": (256,), "shares": (share,)}
    wide = {"share": lambda row: misplaced(0.05 + 0.05 * sign(row))["share"](row)}
    return Effect({**common, "values": misplaced(holds)}, {"values": misplaced(fails)}, values=wide)


EFFECTS = {"other_early": effect(0.2, 0.01, 0.03), "same_late": effect(0.01, 0.2, 1.0)}
