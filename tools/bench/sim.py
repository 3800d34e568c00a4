"""Seeds and overload of the simulator as CSV; run by sim.sh."""

import argparse
import re
import subprocess
import sys

from rig import ROOT, write

WIDTHS = (22, 6, 8) + (9,) * 8 + (6,)  # of the table that sim --overload prints


def cells(line):
    at, out = 0, []
    for w in WIDTHS:
        out.append(line[at:at + w].strip())
        at += w + 1
    return out


def main():
    parser = argparse.ArgumentParser(prog="tools/bench/sim.sh")
    parser.add_argument("--build", default="build")
    parser.add_argument("--seeds", type=int, default=5000)
    parser.add_argument("--dry", action="store_true")
    args = parser.parse_args()
    sim = ROOT / args.build / "tests" / "sim" / "sim"
    seeds = subprocess.run([sim, "--seeds", f"1..{args.seeds + 1}"], capture_output=True, text=True)
    if seeds.returncode:
        print(seeds.stderr[-3000:], file=sys.stderr)
        return 1
    figures = [(words.strip(), int(n)) for n, words in re.findall(r"(?<![\d.])(\d+) ([a-zA-Z][a-zA-Z ]*)", seeds.stdout)]
    write("seeds.csv", [{"figure": name, "value": n} for name, n in figures], args.dry)
    load = subprocess.run([sim, "--overload"], capture_output=True, text=True)
    lines = load.stdout.splitlines()
    names = [re.sub(r"\W+", "_", c) for c in cells(lines[0])]
    rows = [dict(zip(names, cells(l))) for l in lines[1:] if not l.startswith(("holds", "BROKEN"))]
    write("overload.csv", rows, args.dry)
    return load.returncode


if __name__ == "__main__":
    sys.exit(main())
