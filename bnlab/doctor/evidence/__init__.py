"""Evidence: what is known of a model, measured once on its data, and shared by all causes."""
