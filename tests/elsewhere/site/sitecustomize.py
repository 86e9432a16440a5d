"""Python imports this by itself where PYTHONPATH has the folder: processes that tests start are nudged as well."""

import os

from tests.elsewhere.nudge import install

install(int(os.environ["BNLAB_NUDGE"]))
