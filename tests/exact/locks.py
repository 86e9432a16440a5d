"""A lock in a Python module of its own, for the tests of locks that code names."""

import threading

GPU = threading.Lock()
