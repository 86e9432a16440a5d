"""One torch thread in every test process: tensors are small, and threads without idle cores wait for each other."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # also of the commands that tests start
