"""The questions and hypotheses that experiments answer, in our words, and those that wait."""

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

WAITING = {
    "networks that are trained in another way": (
        "F3", "F5", "F6", "F10", "F12", "F13", "F15", "F21", "Q18", "H3", "H5", "H7", "H9", "H10",
    ),
}  # fmt: skip
"""What no experiment answers yet, by what it waits for."""

CATALOGUE = Catalogue(QUESTIONS, HYPOTHESES, WAITING)
