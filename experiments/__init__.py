"""Bnlab's own experiments: `questions`, `papers` that are redrawn, `answers` in words, and what writes their pages."""
