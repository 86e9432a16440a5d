"""A module for each question: the effects that its claims are tried on, and tests of its own scores."""
