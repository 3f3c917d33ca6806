import os

import pytest

MINUTES = float(os.environ.get("CHAOS_MINUTES", "0"))  # of kills, for each of disk and store
needs_minutes = pytest.mark.skipif(not MINUTES, reason="needs CHAOS_MINUTES, as `make chaos` sets it")
