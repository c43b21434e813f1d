"""How long the pack keeps the host from starting: at most 60 ms.

    python dev.py bench startup [RUNS]

Each run is a fresh process that has loaded the host and its own nodes, as in a real start, and then loads
the pack. The slowest of our imports follow, from `python -X importtime`.
"""

import os
import re
import statistics
import subprocess
import sys
from pathlib import Path

PACK = Path(__file__).resolve().parents[2]

LOAD = PACK / "tests" / "programs" / "time_pack.py"


def measure(*flags: str) -> tuple[float, float, str]:
    """(milliseconds by the clock, milliseconds of work, what was printed to stderr) of loading the pack."""
    command = [sys.executable, *flags, str(LOAD), os.environ["COMFYUI_PATH"], str(PACK)]
    # as on any start but the very first: compiled modules are kept
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    done = subprocess.run(
        command, cwd=PACK.parent, env=environment, capture_output=True, text=True, check=True
    )
    wall, busy = (float(number) * 1000 for number in done.stdout.split()[-2:])
    return wall, busy, done.stderr.split("-- the pack", 1)[1]


def main() -> None:
    runs = int(sys.argv[1]) if sys.argv[1:] else 5
    measure()  # compiles
    walls, busies, _ = zip(*(measure() for _ in range(runs)), strict=True)
    print(f"the pack loads in {statistics.median(walls):.1f} ms (median of {runs}, {min(walls):.1f} at best)")
    print(f"of which it works {statistics.median(busies):.1f} ms; the rest waits for a busy machine")
    *_, imports = measure("-X", "importtime")
    found = re.findall(r"import time:\s+(\d+) \|\s+(\d+) \|\s+(\S+)", imports)
    print("the slowest imports, in ms of their own:")
    for own, _, name in sorted(found, key=lambda line: -int(line[0]))[:8]:
        print(f"  {int(own) / 1000:6.1f}  {name.removeprefix(str(PACK) + '.')}")


if __name__ == "__main__":
    main()
