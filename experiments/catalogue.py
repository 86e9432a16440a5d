"""The questions and hypotheses that experiments answer, in our words, and their answers in short."""

from __future__ import annotations

from bnlab.harness.reporting.page import Catalogue

QUESTIONS = {
    "Q1": "What are the moving averages of batch normalization for, and what data are they of?",
    "Q2": "How does the accuracy curve under running averages differ from that under exact statistics, and from a "
    "moving average of the mini-batches' accuracy?",
    "Q3": "The paper averages over training mini-batches after training, with the unbiased variance. What does the "
    "unbiasing change, and when does it matter?",
    "Q4": "Two conventions of the momentum are in use, 0.9 and 0.1 for the same average. What does the wrong one cost?",
    "Q5": "Why an exponential average and not the usual average over all batches?",
    "Q6": "Is the running average insensitive to the last few mini-batches, and at what price in lag?",
    "Q7": "Older statistics are less relevant because the weights have moved: how fast do population statistics drift?",
    "Q8": "How accurate are running mean and variance against those of the whole training set?",
    "Q9": "When is the mean of the batch means not the true mean, and what about the mean of the variances?",
    "Q10": "The running average as a low-pass filter: its noise, its lag, and the momentum that minimizes its error. "
    "Does theory predict the measured optimum?",
    "Q11": "Does it bring nothing to compute the population average: at convergence, early, at tiny and huge batches?",
    "Q12": "Is it infeasible to compute population statistics, because all activations are needed?",
    "Q13": "Normalizing with the statistics of the validation set: how good is it, and what does it leak?",
    "Q14": "Running estimates for validation, one pass over all data for the final test: is that the right division?",
    "Q15": "Examples can be constructed in which the approximation is bad: which, and how bad?",
    "Q16": "How much error in mean and variance does the accuracy tolerate, and in which layers?",
    "Q17": "Does early stopping pick another checkpoint under running averages than under exact statistics?",
    "Q18": "Gain control for each image, without running statistics: how does it compare?",
    "Q19": "What script computes the population statistics of any model?",
}
HYPOTHESES = {
    "H1": "The gap against the momentum has the shape of a U.",
    "H2": "The gap matters early, at high learning rates and in few steps, and vanishes when the rate decays.",
    "H3": "Population statistics beat batch statistics at large batches, and lose at very small normalization batches.",
    "H4": "10,000 images are enough for population statistics.",
    "H5": "New statistics do not rescue weights that were trained at a tiny batch.",
    "H6": "At small batches pooled variances are better than the mean of variances.",
    "H7": "The gap grows with depth.",
    "H8": "The start at 0 and 1 matters where there are few steps.",
    "H9": "Averaged weights need new statistics.",
    "H10": "A ghost batch of about 32 is best.",
    "H11": "With large batches the last batch alone beats a momentum of 0.1, early in training.",
    "H12": "A momentum that tunes itself is never worse than the best fixed one by more than noise.",
    "H13": "Theory's momentum, from noise and drift of other seeds, is within 1.5 times the best one in most layers.",
    "H14": "The gap of the predictive momentum is within 1.25 times that of the best fixed momentum in hindsight, and "
    "smaller than that of Kalman's filter and of any fixed momentum.",
}
FIGURES = tuple(f"F{number}" for number in range(1, 22))

SHORT = {
    "Q1": "They stand in for the statistics of the training set at prediction; the forward of training never reads "
    "them. They are of the latest batches, under weights that have moved since. At the end of training the mean of a "
    "single batch of 4 is {drift.batches_scatter: at the end of training: holds} as far from the population's "
    "as PyTorch's running average is; between a tenth and the end of training the population's means move by "
    "{drift.population_moves: holds}.",
    "Q2": "Early it can be far below: after a tenth of training on digits PyTorch's momentum costs "
    "{quickstart.default_costs_early: batch size 256: holds} at batch 256, but {quickstart.default_costs_early: batch "
    "size 4: fails} at batch 4; whether it costs more than a point that early at batch 1024 on characters is "
    "undecided{if accuracy.ema_is_pessimistic_early: undecided}. At the end it costs next to nothing at batch 4 "
    "and 32 on digits, {quickstart.default_is_harmless_late: batch size 4|batch size 32: holds}; at batch 256 that is "
    "undecided{if quickstart.default_is_harmless_late: batch size 256: undecided}. A moving average of the "
    "mini-batches' accuracy, minus the accuracy that the network has on training images, is "
    "{accuracy.lags_early: batch size 16: holds} early, at batch 16, and {accuracy.agrees_late: "
    "undecided} at the end, at batch 16 and 256; whether that is less than a point is undecided.",
    "Q3": "Little in this small convolutional network. The correction is m/(m−1) for the m values of a channel in a "
    "batch, large only where they are few; in a convolutional network each pixel counts as a value. It makes the "
    "running variance {variance.correction_is_small: holds} as large, most at a batch of 2, and changes accuracy by "
    "{variance.correction_costs_nothing: holds}.",
    "Q4": "At the end of training 0.9 taken for 0.1 costs {momentum.mistake_costs_late: undecided} on average; "
    "whether it costs anything is undecided at every batch size, and so is whether it gains early at "
    "batch 256{if momentum.mistake_gains_early: undecided}.",
    "Q5": "The plain average keeps batches of weights that have moved since: at the end of training it is "
    "{momentum.plain_average_is_farther: at the end of training: holds} as far off as PyTorch's, and it costs "
    "{accuracy.cumulative_costs: at the end of training: holds} at batch 64.",
    "Q6": "To the last batch yes, to the last few no: the last batch at the end of training moves PyTorch's average "
    "by {streams.one_batch_is_little: holds}, but the last 16 are 1 − 0.9^16, 81%, of it. The price of a longer memory "
    "is lag: with a momentum of 0.01 only 1 − 0.99^64, 47%, of a shift is followed after 64 batches.",
    "Q7": "Fast while the learning rate is high: in the middle of training the means of layers behind the first move "
    "{drift.follows_the_learning_rate: holds} as fast as in the last tenth, and those of the third layer "
    "{drift.deeper_is_faster: holds} as fast as those of the second. In the last tenth these means still move, in ten "
    "steps, {drift.memory_holds_late: batch size 64|batch size 256: fails} as far as the means of single batches "
    "scatter at batch 64 and 256, but {drift.memory_holds_late: batch size 16: holds} at batch 16. While the rate is "
    "highest, lag is {drift.lag_early: holds} of the squared gap at batch 256.",
    "Q8": "Early at a huge batch they are far off: running means are {gap.ema_adds_early: holds} as far "
    "from those of single batches as exact ones are. At the end the error costs next to nothing at batch "
    "16 and 64, {gap.nothing_at_adequate_batch: batch size 16|batch size 64: holds}, but "
    "{gap.lag_costs_when_huge: holds} at batch 1024, with few steps; whether it costs less than 0.3 at batch 256 "
    "is undecided{if gap.nothing_at_adequate_batch: batch size 256: undecided}.",
    "Q9": "The mean of batch means is the true one if batches have the same size. A smaller last batch that counts as "
    "much as others makes the noise of the running mean, its variance, {streams.small_batch_undoes_it: holds} as "
    "large at the end of an epoch at batch 256; in an average over all batches, on frozen weights at batch 16 and 64, "
    "it changes accuracy by {variance.weights_cost_nothing: holds}. The mean of the variances leaves out how batch "
    "means differ; yet on frozen weights, in batches of 2 and 4, pooling, which counts that too, is "
    "{variance.pooled_is_nearer_when_frozen: fails} as far off in layers behind others. In accuracy pooling is "
    "better at batch 2 all the same, {variance.pooling_gains: batch size 2: holds}; whether it is at batch 4 is "
    "undecided{if variance.pooling_gains: batch size 4: undecided}.",
    "Q10": "Within an epoch, on frozen weights at batch 256, it predicts the noise: the measured one is "
    "{streams.theory_predicts_the_course: holds} the predicted one. The optimum it misses at batch 256 after 55% of "
    "training: theory's momentum is {momentum.theory_knows_momentum: after 55% of training, batch size 256: fails} too "
    "large or too small there, in the geometric mean over layers. Whether it is within a factor of 2 in the other "
    "eight conditions is undecided{if momentum.theory_knows_momentum: after 20% of training|after 55% of training, "
    "batch size 16|after 55% of training, batch size 64|at the end of training: undecided}.",
    "Q11": "At the end, little at moderate batches: exact statistics gain {gap.nothing_at_adequate_batch: batch "
    "size 16|batch size 64: holds} at batch 16 and 64. Whether the gain at batch 256, "
    "{gap.nothing_at_adequate_batch: batch size 256: undecided}, is less than 0.3, and whether there is any at "
    "batch 4, is undecided{if gap.population_wins_when_tiny: undecided}. They gain much at a huge batch with few "
    "steps, {gap.lag_costs_when_huge: holds} at batch 1024, and can be much early, "
    "{quickstart.default_costs_early: batch size 256: holds} after a tenth of training at batch 256 on digits. Where "
    "the learning rate never falls, the gap at the end at batch 256 is {settings.constant_rate_costs_late: holds} as "
    "large as where it falls to 0. Whether averaged weights lose more than a point under the running averages of the "
    "network that was trained is undecided{if weight_averaging.stale_statistics_cost: undecided}.",
    "Q12": "No: breadth first, the exact statistics of a residual network with 20 layers take "
    "{passes.images_cost_no_more: images 512|images 1024: holds} as long as one forward, for 512 and 1,024 images. "
    "For 256 images and networks of 8 to 56 layers they take about twice as long, {passes.one_pass_is_enough: "
    "undecided}; whether it is less than twice is undecided. The price is memory, {passes.memory_is_the_price: "
    "holds} as much for four times the images; with an eighth of the memory that it takes by itself a batch takes "
    "{passes.less_memory_is_enough: shortage 8: holds} forwards, with a twelfth {passes.less_memory_is_enough: "
    "shortage 12: fails}.",
    "Q13": "On test images, statistics of the validation split against exact ones: {few_images.validation_serves: "
    "undecided}; whether that is within 0.3, and whether on validation images themselves they gain 0.3 more than "
    "there, which would be a leak, is undecided{if few_images.validation_leaks_nothing: undecided}. Few images serve "
    "badly: statistics of two test images cost {few_images.tiny_test_batches_cost: holds}, those of 512 cost "
    "{few_images.large_test_batches_cost_nothing: batch size 16: holds} in networks trained at batch 16; whether they "
    "cost less than 0.3 at batch 256 is undecided{if few_images.large_test_batches_cost_nothing: batch size 256: "
    "undecided}. Where test images are strongly corrupted, statistics of 256 of them gain {shift.many_images_gain: "
    "holds} against exact ones of the training images.",
    "Q14": "For the final test a pass over all data is not needed: against statistics of all images those of 512 cost "
    "{few_images.hundreds_nearly_suffice: at the end of training: holds}. For validation PyTorch's running average "
    "is as good at the end of training at batch 64, {gap.nothing_at_adequate_batch: batch size 64: holds} apart. Over "
    "a training at a constant learning rate it shows {model_selection.ema_shows_less: holds} less than exact "
    "statistics do; whether the checkpoint that it picks is as good, to half a point, is undecided at batch 16 and 256{"
    "if model_selection.ema_picks_as_well: undecided}.",
    "Q15": "Jumps and rare batches, without a bound: a jump or outlier of 100 standard deviations instead of one "
    "makes the error of PyTorch's average {streams.error_is_unbounded: holds} as large. In sorted "
    "batches it is {streams.order_undoes_averaging: holds} as far off as a single batch in random "
    "order. Where a network is trained in blocks of 16 images of a class, PyTorch's average is not at fault: under "
    "exact statistics too the network loses {non_iid.nothing_rescues: order blocks:16: holds} against one that "
    "saw shuffled images, and the average costs {non_iid.running_average_costs: order blocks:16: fails} more.",
    "Q16": "Not much: an error of 0.1 standard deviations in all means costs "
    "{tolerance.small_errors_are_harmless: means: fails}, and one of 0.8 costs {tolerance.large_errors_cost: "
    "holds}. An error of 0.1 in all logarithms of variances costs {tolerance.small_errors_are_harmless: batch "
    "size 256, variances: fails} at batch 256; whether it costs less than a point at batch 16 is undecided{if "
    "tolerance.small_errors_are_harmless: batch size 16, variances: undecided}. An error of 1.6 standard "
    "deviations in the means of one layer alone costs {tolerance.first_layer_costs_more: holds} more in the first "
    "layer than in the last.",
    "Q17": "There are too few networks to say. At a constant learning rate the EMA shows a validation "
    "accuracy that is {model_selection.ema_shows_less: holds} lower over training; but whether it picks the same "
    "checkpoint in most networks is undecided{if model_selection.ema_picks_the_same: undecided}, and so is whether its "
    "pick is as good, to half a point: it costs {model_selection.ema_picks_as_well: undecided}, at batch 256 and 16.",
    "Q18": "In this small network it is no point worse than batch norm on characters: gain control minus batch norm "
    "is {norms.gain_control_keeps_up: holds} at batch 4 and 64, under running averages as under exact "
    "statistics. On digits at batch 2 it is {norms.gain_control_keeps_up_on_digits: batch size 2: holds}; whether "
    "it is a point worse from 4 to 256 is undecided{if norms.gain_control_keeps_up_on_digits: batch size 4|batch "
    "size 16|batch size 64|batch size 256: undecided}. What it does in deep networks was not asked.",
    "Q19": "`bnlab.population_statistics(model, loader)`; its two orders of the work, breadth first and layer by "
    "layer, differ by {passes.both_agree: holds}.",
}
"""Answers in a sentence or two; with what verdict each number was written for, see `reporting.short`."""

CATALOGUE = Catalogue(QUESTIONS, HYPOTHESES, SHORT)
