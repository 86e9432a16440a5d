"""The numbers from which on something counts, each with what it was calibrated on.

*Healthy* and *specimens* are networks of `benchmarks.gallery`, of four seeds; *digits* is the convolutional network
of the doctor's tests. *By convention*: nothing was calibrated. Intervals are of 95% everywhere, by convention too. How
many images are tried or rows printed decides nothing, and stands where it is used.
"""

# What matters

WORTH = 0.005  # of shares, half a point; by convention
WORTH_OF_SPREAD = 0.01  # of another metric's 5 to 95% range over images; by convention
COSTS_ARE_ERRORS = 10.0  # times what matters, which are five points of accuracy; by convention
SURELY_HEALTHY = 4.0  # times what matters; derived: intervals of 1,000 images end there if a tenth of them changes
NEAR_A_LINE = 0.2  # of a line's own size, within which a verdict says that it is near; by convention
VISIBLE = 0.05  # σ: a gap that costs nothing is worth a note; healthy: .03 at most
NEAR_CHANCE = 0.1  # of what there is to gain over always naming the commonest label; by convention
LOST_ON_NEW_IMAGES = 0.1  # of accuracy, against training images; healthy: .02, digits: .03
NAMES_CLASSES = 0.5  # mean probability of the class that is named: below it outputs are taken for numbers; digits: .9
LEAST_LIKELIHOOD = -10.0  # of a label: one that is named surely and wrongly is no worse; by convention

# What an undo brings back

LEFT_BY_SMALLER = 0.1  # of the best gain, which a smaller undo may leave; by convention
LEAST_OF_GAP = 0.5  # of Σ log(1 + gap) that an undo has to take away where nothing but the gap judges; by convention
EXPLAINED = 0.5  # share of the gap from which on a cause is named rather than "other images or weights"; by convention
EXPLAINS_ALL = 0.9  # share of the gap of an undo's layers; scaled or shifted digits: .97 and more, noise and blur: .86
SURELY_BETTER = 2.0  # standard errors of the mean, by which labels are predicted better; by convention

# Whether averages fit

FITS = 0.03  # σ; healthy: .01 to .03, specimens whose averages are off: .03 to .05 for noise, .14 and more for others
CHANCE = 3.0  # standard errors; healthy: 0.8 to 1.7, specimens whose averages are off: 3 and more in some layer
NOISY = 2.0  # standard deviations of the noise that averages have; it is larger in 5% of channels
FARTHEST = 10.0  # σ: averages farther off explain no less, lest a single channel decide; by convention
FEWEST_BATCHES = 3  # whose means vary by more than chance lets them; by convention
SCALE_SHOWS = 0.02  # log scale, or shift in units of the scale: images of the same data set differ by less
FACTOR_SHOWS = 0.05  # log ratio of all variances: halves of 500 healthy images of the gallery differ by .03

# The start, momentum, and batches

FILL_EXPLAINS = 0.7  # of the gap, by one share of no images; ones: .9 and more, noise: .8, other faults: .58 at most
FILL_SHOWS = 0.01  # weight of forwards of no images; one of momentum .01 leaves as much, below it is noise
START_FORGOTTEN = 0.005  # weight (1−m)^t of the start; what is left of it is below the noise of an average of m = .1
START_REMEMBERED = 0.01  # weight of the start that shows in the first layer, whatever the images; by convention
START_SHOWS = 0.2  # weight of the start that is worth a warning while its cost is not known; by convention
START_ROUNDED = 0.999  # of that weight, below which no variance falls; derived: float32 rounds by less in 10⁴ updates
NEARLY_ALL = 0.99  # of a layer's channels hold a value that no batch gives; by convention
MOMENTUM_IS_LARGE = 0.5  # a memory of fewer than three batches; torchvision's networks have .1 or less, MaxViT .99
FEW_VALUES = 50  # in a channel of a batch: the variance is low by 2% and noisy
SMALL_LAST_BATCH = 0.5  # of a full one; `last_batch`: 1/32 halves the accuracy, what 1/2 does is undecided
SAME_BATCH = 0.5  # distance of calls in a step over that between steps; sharpness-aware training: .01 to .2
BATCHES_LIKELY = 4.0  # standard deviations of a normal distribution, which shuffled batches reach once in 30,000 times
BATCHES_RATIO = 2.0  # of the variance between batches over that of shuffled ones; healthy: 0.8 to 1.2, sorted: 39
BATCHES_SHARE = 0.02  # of a layer's variance, between the means of batches; healthy: .003 at most, sorted: .13
BATCHES_SPREAD = 0.1  # standard deviation of batches' mean squares over their mean; healthy: .06, sorted: .4
CALLS_SHARE = 0.1  # of the variance, between a layer's calls in a forward; calls of one population: less than .001
CALLS_SHARE_CHANCE = 20.0  # times the share that means of so many images have by chance; by convention
CALLS_RATIO = 0.2  # log ratio of variances of calls; specimen: 1.3, and .2 in layers that are given normalized values
CALLS_RATIO_CHANCE = 8.0  # over √images, for images that differ much in contrast; derived: four standard errors
RANKS_DIFFER = 0.01  # σ, or of a variance, in some channel; by convention, as ranks of one network hold the same
RANKS_DIFFER_MUCH = 0.1  # the same, from which on it is a warning; by convention

# A lag, and weights that moved

LAG_COSINE = 0.5  # between gap and drift; specimen that was stopped early: .95, healthy: -.3 to -.2
LAG_RATIO = 2.0  # of the gap over what momentum and drift predict; specimen that was stopped early: 1.2
LAG_SPANS = 5.0  # memories of an average between two checkpoints, within which their difference shows the drift
WEIGHTS_MOVED = 0.01  # relative change from which on statistics are taken to have changed; pruned to a half: .28
ANOTHER_NETWORK = 1.0  # relative distance of weights; derived: that of 0, and two unrelated networks have √2
COLLAPSED = 0.7  # exact variance over the running one in the last third; healthy networks of the gallery: .95 to 1.05
COLLAPSE_FALLS = 0.8  # of that in the first third; pruned: .65, averages of two networks: .61
NOT_COLLAPSED = 1.1  # in the first third, above which the images are others

# The network

FORMULA_DIFFERS = 0.01  # of an output's spread; bfloat16, at 2⁻⁸ = .004 a value, makes less
EPS_SHOWS = 0.05  # relative change of a channel's variance by another eps, half as much of its output; by convention
PREDICTIONS_DIFFER = 0.02  # of the outputs' spread; rounding in TF32 or bfloat16, at 2⁻⁸ = .004 a value, makes less
OUTPUTS_ROUNDED = 0.01  # of the outputs' size: a spread below it may be rounding, as in bfloat16
INPUT_DIFFERS = 0.01  # σ, or of the variance: rounding, and kernels that are not deterministic, make less
NOT_AFFINE = 1e-2  # of the response to a change of the images: float32 and half precision make less
DEAD = 10.0  # eps, of a variance: eps makes 5% of the output's scale; healthy: 10,000 and more
WEAK = 100.0  # eps, of a variance: eps makes 0.5%
WEAK_SHARE = 0.05  # of a layer's channels; by convention
FOLDED_AGREES = 0.5  # of how much weights and biases differ over channels; healthy: 3 and more, folded twice: .1
