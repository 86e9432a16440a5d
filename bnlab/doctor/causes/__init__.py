"""One cause a file, named by its code."""
