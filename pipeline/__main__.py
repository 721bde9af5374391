"""``python -m pipeline`` is ``lifecycle``."""

import sys

from pipeline.cli import main

sys.exit(main())
