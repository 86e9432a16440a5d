"""From tables to figures and verdicts: `frames` selects and averages, `plots` draws, `experiment` decides. No torch."""
