"""What the long measurements share: a cluster, the CSV, where and when it was measured."""

import csv
import datetime
import os
import platform
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "tools" / "bench" / "results"
sys.path.insert(0, str(ROOT / "tests" / "e2e"))
from cluster import Cluster  # noqa: E402, F401


def machine():
    model = next((l.split(":", 1)[1].strip() for l in Path("/proc/cpuinfo").read_text().splitlines()
                  if l.startswith("model name")), platform.machine())
    return f"{os.cpu_count()} x {model}"


def commit():
    def git(*words):
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    return git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")


def write(name, rows, dry):
    """Appends rows (dicts of the same keys) with date, commit and machine."""
    stamp = {"date": datetime.date.today().isoformat(), "commit": commit(), "machine": machine()}
    rows = [{**stamp, **r} for r in rows]
    out = csv.DictWriter(sys.stdout, rows[0].keys())
    out.writeheader()
    out.writerows(rows)
    if dry:
        return
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / name
    new = not path.exists()
    with open(path, "a", newline="") as f:
        out = csv.DictWriter(f, rows[0].keys(), lineterminator="\n")
        if new:
            out.writeheader()
        out.writerows(rows)
