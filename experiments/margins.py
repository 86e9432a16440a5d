"""Margins of several questions, and the reasons for them, which verdicts print."""

from bnlab.harness.reporting.question import above, within

SIX_IMAGES = "7 or 8 of 2,500 test images, about the standard error at 97% accuracy; comparisons are paired"
FLAT = "the gap is flat around its minimum: with twice the best momentum it is about as small"
HARDLY_SEEN = "a quarter more hardly shows in accuracy"
AS_ACCURATE = "0 means equal accuracy"
AS_NEAR = "1 means equally near"
A_POINT = "networks of this size are chosen by differences of about a point"

GAINS = above(0.0, "points gained", AS_ACCURATE)
COSTS_A_POINT = above(1.0, "points", A_POINT)
HARMLESS = within(-0.3, 0.3, "points", SIX_IMAGES)
