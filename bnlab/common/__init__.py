"""Files, names of statistics, and packages that may be missing: what knows of no model."""
