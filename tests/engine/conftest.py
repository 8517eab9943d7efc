"""The engine must be importable with torch alone: these tests put nothing but the pack's root on the path."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2]))
