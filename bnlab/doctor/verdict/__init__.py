"""The verdict: to what the evidence is attributed, where the fault is, and the findings to it."""
