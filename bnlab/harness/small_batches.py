"""The last batch of an epoch, where images are left that do not fill one."""

MOST_NAMED = 3
"""Sizes of small last batches that a message lists."""
ADVICE = "and its update is made at the full learning rate, which can harm the weights; last_batch=drop leaves it out"


def count_training(images: int) -> int:
    """Count the training images: nine in ten of the training and validation images together."""
    return images - images // 10


def count_last(images: int, batch_size: int, steps: int) -> int | None:
    """Count the images in a small last batch: at most half of a full one; None where there is none.

    One image alone is never trained on.

    Args:
        images: in the training split.
        batch_size: images in a full batch.
        steps: updates of the whole training, which may end before the first epoch does.
    """
    full, left = divmod(images, batch_size)
    is_small = 1 < left <= batch_size / 2
    is_trained_on = 0 < full < steps
    return left if is_small and is_trained_on else None
