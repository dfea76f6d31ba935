"""`python -m firn VERB`, the same as the command `firn`."""

import sys

from pipeline.__main__ import main

sys.exit(main())
