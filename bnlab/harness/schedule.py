"""The learning rate over the training, as a share of its peak."""

SCHEDULES = {
    "onecycle": "The learning rate rises for a fifth of training and falls to 0 at the end.",
    "step": "The learning rate falls to a tenth after half of training, and again after three quarters.",
    "constant": "The learning rate is constant.",
}
"""Each in a sentence."""


def lr_factor(schedule: str, step: int, steps: int) -> float:
    """The share of the peak learning rate for update `step + 1` of `steps`."""
    done = step / steps
    if schedule == "constant":
        return 1.0
    if schedule == "step":
        return 0.1 ** ((done >= 0.5) + (done >= 0.75))
    rise = 0.2
    return 0.05 + 0.95 * done / rise if done < rise else (1 - done) / (1 - rise)
