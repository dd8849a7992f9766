"""Write docs/fidelity.md: `make fidelity`.

Measured runs come from ../shared/data (or the folder given); without it nothing is written.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from sim.report.fidelity_figures import draw_validation
from sim.report.fidelity_page import write_page
from sim.study.fidelity.cases import judge, read_cases
from sim.study.fidelity.output import write_validation

CASES = Path("results/fidelity/cases.yaml")
ENGINES = Path("results/fidelity")
OUT = Path("results/out/fidelity")
PAGE = Path("docs/fidelity.md")
PICTURES = "img/fidelity"


def main(data: Path = Path("../shared/data")) -> int:
    """Judge every case; return the exit status."""
    if not data.is_dir():
        print(f"make fidelity: skipped: no measured runs, {data} is not there")
        return 0
    judged = []
    for case in read_cases(CASES):
        print(f"{case.name}: fitting and replaying", flush=True)
        judged.append(judge(case, data, ENGINES))
        folder = OUT / case.name
        write_validation(judged[-1].made, folder, judged[-1].fitted)
        picture = draw_validation(judged[-1].made, folder)
        target = PAGE.parent / PICTURES / f"{case.name}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(picture, target)
    write_page(judged, PAGE, PICTURES)
    print(f"wrote {PAGE}; folders and PDFs in {OUT}")
    return 0


if __name__ == "__main__":
    sys.exit(main(*map(Path, sys.argv[1:2])))
