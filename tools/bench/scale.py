"""The figures of sim --scale with date, commit and machine; run by scale.sh."""

import argparse
import csv
import subprocess
import sys
import tempfile

from rig import ROOT, write


def main():
    parser = argparse.ArgumentParser(prog="tools/bench/scale.sh")
    parser.add_argument("--build", default="build")
    parser.add_argument("--dry", action="store_true")
    args, more = parser.parse_known_args()
    sim = ROOT / args.build / "tests" / "sim" / "sim"
    subprocess.run(["ninja", "-C", str(ROOT / args.build), "tests/sim/sim"], check=True,
                   stdout=subprocess.DEVNULL)
    with tempfile.NamedTemporaryFile("r", suffix=".csv") as f:
        done = subprocess.run([sim, "--scale", "--csv", f.name, *more])
        rows = list(csv.DictReader(f))
    if done.returncode:
        return done.returncode
    write("scale.csv", rows, args.dry)
    return 0


if __name__ == "__main__":
    sys.exit(main())
