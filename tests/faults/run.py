"""Count what kills and flipped bits do, and write the counts to book/faults.json.

    python tests/faults/run.py

The page *Reproduce* shows the counts. Only this command writes them.
"""

from __future__ import annotations

import argparse
import datetime
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "helpers"))

import pytest
from flips import all_kinds, count
from kills import JOBS, kill_repeatedly
from pythia_book import records

from pythia_core.util.files import write_json

OUT = Path(__file__).resolve().parents[2] / "book" / "faults.json"


def main() -> int:
    """Run both, write the counts, and return 1 if anything went wrong."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--kills", type=int, default=200, help="SIGKILLs over all jobs")
    parser.add_argument("--flips", type=int, default=1000, help="flips over all kinds of file")
    parser.add_argument("--out", type=Path, default=OUT, help="file to write")
    args = parser.parse_args()
    commit, tests = records.commit(), Path(__file__).resolve().parents[1]
    status = ["git", "status", "--porcelain", "--", str(tests)]
    changed = subprocess.run(status, cwd=tests, capture_output=True, check=False)
    if args.out.resolve() == OUT and (commit["dirty"] in (True, None) or changed.stdout):
        print("error: commit code and tests first, so that the counts name them", file=sys.stderr)
        return 1
    kills, flips, bad = {}, {}, []
    with tempfile.TemporaryDirectory() as folder:
        for job in JOBS:
            (root := Path(folder) / job.name).mkdir()
            kills[job.name] = asdict(kill_repeatedly(job, root, -(-args.kills // len(JOBS))))
            print(job.name, kills[job.name], flush=True)
        with pytest.MonkeyPatch.context() as patch:
            kinds = all_kinds(Path(folder), patch) if args.flips else []
            for kind in kinds:
                outcomes, wrong = count(kind, -(-args.flips // len(kinds)))
                flips[kind.name] = dict(outcomes)
                bad += wrong
                print(kind.name, flips[kind.name], flush=True)
    print("\n".join(bad))
    entry = {
        "commit": commit["id"],
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": records.device()["cpu"],
        "kills": kills,
        "flips": flips,
    }
    write_json(args.out, entry)
    unequal = any(each["equal"] != each["finished"] for each in kills.values())
    return int(bool(bad) or unequal)


if __name__ == "__main__":
    sys.exit(main())
