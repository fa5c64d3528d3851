"""The folder's helper module is importable by name, as in the other rooms' tests."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
