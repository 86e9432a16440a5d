"""How far statistics are from a reference, and which part of that is start, lag and noise."""
