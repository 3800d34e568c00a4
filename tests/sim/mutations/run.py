#!/usr/bin/env python3
"""Plants one bug at a time (planted.py) in a copy of the tree, builds the simulator and runs seeds
until one fails. Prints, and with --csv writes, a line for each: the first seed that found it and the
words it was found with. Exits with 1 when one was not found or could not be planted.

  tests/sim/mutations/run.py [--seeds 500] [--only WORDS] [--csv FILE] [--check]

--check only looks whether each can be planted: seconds, no build."""

import argparse
import csv
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

from planted import PLANTED

ROOT = pathlib.Path(__file__).resolve().parents[3]
RUN_S = 120  # a bug may also make the simulation stand still


def planted_text(root, path, text):
    source = (root / path).read_text()
    if source.count(text) != 1:
        return None
    return source


def check():
    bad = [name for name, path, text, _ in PLANTED if planted_text(ROOT, path, text) is None]
    for name in bad:
        print(f"cannot be planted, its place is gone: {name}")
    print(f"{len(PLANTED) - len(bad)} of {len(PLANTED)} bugs can be planted")
    return not bad


def copy_tree(to):
    files = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, text=True,
                           check=True, capture_output=True).stdout.splitlines()
    for f in files:
        if not (ROOT / f).is_file():
            continue
        (to / f).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / f, to / f)


def build(tree):
    return subprocess.run(["ninja", "-C", "build", "-j2", "tests/sim/sim"], cwd=tree, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def hunt(tree, seeds):
    """(seed, words) of the first failure; (None, words) when there is none."""
    try:
        r = subprocess.run(["build/tests/sim/sim", "--seeds", f"1..{seeds + 1}"], cwd=tree, text=True,
                           errors="replace", capture_output=True, timeout=RUN_S)
    except subprocess.TimeoutExpired:
        return None, "stands still"
    if r.returncode == 0:
        return None, "not found"
    seed = re.search(r"--seed (\d+)", r.stderr)
    words = re.search(r"VIOLATED: (.*)", r.stderr) or re.search(r"(Assertion .*)", r.stderr)
    return int(seed.group(1)) if seed else 0, words.group(1) if words else f"exit {r.returncode}"


def try_one(tree, bug, seeds):
    name, path, text, with_bug = bug
    source = planted_text(tree, path, text)
    if source is None:
        return None, "cannot be planted: its place is gone"
    (tree / path).write_text(source.replace(text, with_bug))
    built = build(tree)
    found = hunt(tree, seeds) if built.returncode == 0 else (None, "does not compile")
    if built.returncode:
        print(built.stdout[-2000:], file=sys.stderr)
    (tree / path).write_text(source)
    return found


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("--seeds", type=int, default=500)
    p.add_argument("--only", default="")
    p.add_argument("--csv")
    p.add_argument("--check", action="store_true")
    a = p.parse_args()
    if a.check:
        return 0 if check() else 1
    rows = []
    with tempfile.TemporaryDirectory(prefix="planted-") as d:
        tree = pathlib.Path(d)
        copy_tree(tree)
        subprocess.run(["meson", "setup", "build", "-Dcuda=disabled", "-Dverbs=disabled"], cwd=tree,
                       check=True, stdout=subprocess.DEVNULL)
        for bug in [b for b in PLANTED if a.only in b[0]]:
            seed, words = try_one(tree, bug, a.seeds)
            rows.append((bug[0], bug[1], seed if seed is not None else "", words))
            print(f"{bug[0]:60} {rows[-1][2]:>5}  {words[:110]}", flush=True)
    missed = [r for r in rows if r[2] == ""]
    print(f"{len(rows) - len(missed)} of {len(rows)} planted bugs found within {a.seeds} seeds")
    if a.csv:
        commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, text=True,
                                capture_output=True).stdout.strip()
        with open(a.csv, "w", newline="") as f:
            out = csv.writer(f, lineterminator="\n")
            out.writerow(["bug", "file", "first_seed", "found_by", "seeds", "commit"])
            out.writerows((*r, a.seeds, commit) for r in rows)
    return 1 if missed else 0


if __name__ == "__main__":
    os.nice(5)
    sys.exit(main())
