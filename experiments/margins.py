"""Reasons for margins that claims of several experiments share."""

SIX_IMAGES = "6 of 2,000 test images: about the standard error where accuracy is near 97%; comparisons are paired"
FLAT = "gaps around a minimum are flat: twice the best momentum costs about as much"
AS_ACCURATE = "at 0 both are as accurate"
A_POINT = "a point is what decides between two networks of this size"
