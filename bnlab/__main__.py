"""`python -m bnlab`: the command `bnlab`, where its script is not on the path."""

import sys

from bnlab.cli import main

sys.exit(main())
