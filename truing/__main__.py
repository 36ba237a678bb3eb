"""``python -m truing``, also for ``accelerate launch -m truing``."""

import sys

from truing.cli import main

sys.exit(main())
