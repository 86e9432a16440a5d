"""A caller's model: its batch norms, the batches that it is given, and how it is lent and given back."""
