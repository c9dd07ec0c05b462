"""`python -m mmbdhs`."""

import sys

from mmbdhs.cli import main

sys.exit(main())
