"""What is measured; benchmarks.run does all of it. See docs/performance.md for what came out."""

import sys
from pathlib import Path

# The programs that results are held against are those of the tests, called in the same way. Appended, so that nothing
# there can stand before an installed package.
sys.path.append(str(Path(__file__).resolve().parents[1] / "tests" / "support"))
