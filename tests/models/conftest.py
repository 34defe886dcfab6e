"""Makes the modules beside the tests importable: pytest imports the tests themselves without looking there."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
