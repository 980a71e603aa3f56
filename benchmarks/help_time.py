"""How long ``facedata --help`` takes, beside an interpreter that does nothing.

python benchmarks/help_time.py
"""

from __future__ import annotations

import sys
from pathlib import Path

from measure import in_turn, report


def main() -> None:
    facedata = str(Path(sys.executable).with_name("facedata"))
    help_, nothing = "facedata --help", "python -c pass"
    report(in_turn({help_: [facedata, "--help"], nothing: [sys.executable, "-c", "pass"]}, 20), help_)


if __name__ == "__main__":
    main()
