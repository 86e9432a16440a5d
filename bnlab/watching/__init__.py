"""Training that is watched: its latest batches are kept, and show what running averages lose at any moment."""
