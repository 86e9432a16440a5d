"""Networks and the data on which they are trained: `producing` makes one, `runs` has its files."""
