"""Run every row file here, one after the other: `python -m benchmarks [the options of each]`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
ROW_FILES = ("core", "filters", "scaling", "redis_streams", "jetstream", "mesh")


def main(argv: list[str]) -> int:
    """Run them in processes of their own; the exit status is that of the worst."""
    worst = 0
    for name in ROW_FILES:
        file = HERE / f"{name}.py"
        print(f"\n{file.stem}", flush=True)
        worst = max(worst, subprocess.run([sys.executable, str(file), *argv], check=False).returncode)
    return worst


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
