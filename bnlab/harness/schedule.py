"""The learning rate over the training, as a share of its peak."""

SCHEDULES = ("onecycle", "step", "constant")


def lr_factor(schedule: str, step: int, steps: int) -> float:
    """The share of the peak learning rate for update `step + 1` of `steps`."""
    done = step / steps
    if schedule == "constant":
        return 1.0
    if schedule == "step":
        return 0.1 ** ((done >= 0.5) + (done >= 0.75))
    rise = 0.2
    return 0.05 + 0.95 * done / rise if done < rise else (1 - done) / (1 - rise)
