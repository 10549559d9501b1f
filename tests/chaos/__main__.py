"""Run the chaos scenarios: print a line for each event and a verdict for each scenario; exit with 1 if one failed."""

import argparse
import sys
import tempfile
import time
from pathlib import Path

from tests.chaos.monkey import Table
from tests.chaos.scenarios import SCENARIOS, setting


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kills", type=int, default=30, help="of workers, nodes and drivers, in `deaths`")
    parser.add_argument("--only", choices=list(SCENARIOS), action="append", help="a scenario; may be repeated")
    arguments = parser.parse_args()
    began, table, verdicts = time.monotonic(), Table(), {}
    with tempfile.TemporaryDirectory() as scratch, setting(Path(scratch), table, arguments.seed) as given:
        for name in arguments.only or SCENARIOS:
            at = time.monotonic()
            try:
                verdict = "held: " + SCENARIOS[name](given, arguments.kills)
            except AssertionError as error:
                verdict = f"FELL: {error}"
            verdicts[name] = f"{time.monotonic() - at:5.0f} s  {verdict}"
            table.note(0, "verdict", f"{name}: {verdict}")
    print(f"\nseed {arguments.seed}, {time.monotonic() - began:.0f} s; events: {dict(table.counts())}")
    for name, verdict in verdicts.items():
        print(f"{name:<14} {verdict}")
    return int(any("FELL" in verdict for verdict in verdicts.values()))


if __name__ == "__main__":
    sys.exit(main())
