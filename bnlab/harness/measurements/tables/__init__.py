"""Measurements that several questions read, one a file of its table's name."""
