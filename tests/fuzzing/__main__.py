"""`python -m fuzzing`; in a file of its own, since the processes that it starts import the other."""

import sys

from .fuzz import main

sys.exit(main())
