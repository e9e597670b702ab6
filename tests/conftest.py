"""Settings of every test and of the processes that tests start."""

from __future__ import annotations

import os

os.environ.setdefault("PYTHIA_PRECISION", "fp32")  # no test depends on the speed of the machine
