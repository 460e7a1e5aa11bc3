"""``python -m fast_instantid`` is ``fast-instantid``."""

import sys

from .cli import main

sys.exit(main())
