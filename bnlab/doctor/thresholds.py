"""The numbers from which on something counts, each with what it was calibrated on."""

START_FORGOTTEN = 0.005  # weight (1−m)^t of the start; what is left of it is below the noise of an average of m = .1
START_SHOWS = 0.2  # weight of the start that is worth a warning while its cost is not known
MOMENTUM_IS_LARGE = 0.5  # a memory of fewer than three batches; torchvision's networks have .1 or less, MaxViT .99
FEW_VALUES = 50  # in a channel of a batch: the variance is low by 2% and noisy
SCALE_SHOWS = 0.02  # log scale, or shift in units of the scale: images of the same data set differ by less
FACTOR_SHOWS = 0.05  # log ratio of all variances: halves of 500 healthy images of the gallery differ by .03
EXPLAINED = 0.5  # share of the gap from which on a cause is named rather than "other images or weights"
COLLAPSED = 0.7  # exact variance over the running one in the last third; healthy networks of the gallery: .95 to 1.05
COLLAPSE_FALLS = 0.8  # of that in the first third
COLLAPSED_WEIGHS = 0.6  # of the gap, which collapsed variances explain: more than nothing else does, less than a trace
NOT_COLLAPSED = 1.1  # in the first third, above which the images are others
WEIGHTS_MOVED = 0.01  # relative change from which on statistics are taken to have changed
OUTLYING = 10.0  # standard deviations of an image over the median one's, which contrast hardly ever reaches
LEAST_OF_GAP = 0.5  # of Σ log(1 + gap) that an undo has to take away where nothing but the gap judges
VISIBLE = 0.05  # σ: a gap that costs nothing is worth a note from here on
SAME_BATCH = 0.5  # distance of calls in a step over that between steps; sharpness-aware training: .01 to .2
EXPLAINS_ALL = 0.9  # share of the first layer's gap; scaled or shifted digits: .97 and more, noise and blur: .86
NOISE_WEIGHS = 0.9  # of what it explains: a cause that has left a trace of its own says more than noise
