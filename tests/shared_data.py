"""Where the recordings shared between checkouts lie, and the visible skip where they do not."""

from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared"
AN4 = SHARED / "data" / "an4"
ZOO = SHARED / "data" / "zoo"
GOLDEN = SHARED / "golden"

needs_shared = pytest.mark.skipif(not GOLDEN.is_dir(), reason=f"{SHARED} is absent: tests on shared recordings do not run")
