"""Runs all of Hadal's tests and counts their cases; called by tools/test.

Parts, in order: release build (warnings are errors), its cmocka programs, the layer law, the
end-to-end suites, verbs in an emulated machine with software RoCE (tests/rdma-vm), the unit and
simulator programs again under ASan and UBSan. --only rdma also breaks the service over verbs in
every way, which takes three minutes more. A part that cannot be built, crashes or runs out of time counts as a
failed case. Everything has a time limit.
"""

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as xml
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BUDGET_S = 1150  # of everything together: it must stay under 20 minutes on two cores
PARTS = ["unit", "sim", "layers", "e2e", "rdma", "sanitize"]
PYTEST_OF = {"layers": "tests/layers", "e2e": "tests/e2e"}
START = time.monotonic()


class Tally:
    def __init__(self):
        self.passed = 0
        self.failed = []
        self.skipped = []

    def fail(self, case, why=""):
        self.failed.append((case, why))

    def line(self):
        skipped = f", {len(self.skipped)} skipped" if self.skipped else ""
        return f"{self.passed} passed, {len(self.failed)} failed{skipped}"


def say(text):
    print(f"[{time.monotonic() - START:5.0f} s] {text}", flush=True)


def run(command, limit_s, log, env=None):
    """Exit status, or None when the time ran out; then its whole process group is killed."""
    limit_s = min(limit_s, BUDGET_S - (time.monotonic() - START))
    if limit_s <= 0:
        return None
    with open(log, "wb") as out:
        child = subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                                 env={**os.environ, **(env or {})}, start_new_session=True)
        try:
            return child.wait(limit_s)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGTERM)
            try:
                child.wait(5)
            except subprocess.TimeoutExpired:
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()
            return None


def tail(path, lines=40):
    text = Path(path).read_text(errors="replace") if Path(path).exists() else ""
    return "\n".join(text.splitlines()[-lines:])


def errors(path, lines=60):
    """What a compiler or linker complained about, each with the lines after it."""
    found, left = [], 0
    for line in Path(path).read_text(errors="replace").splitlines() if Path(path).exists() else []:
        left = 4 if re.search(r"\berror\b|undefined reference|cannot find", line) else left - 1
        if left > 0 and len(found) < lines:
            found.append(line[:400])
    return "\n".join(found)


def introspect(what, folder):
    return json.loads(subprocess.run(["meson", "introspect", f"--{what}", str(folder)], cwd=ROOT, check=True,
                                     capture_output=True, text=True).stdout)


def introspect_tests(folder):
    return introspect("tests", folder)


def suites_of(folder):
    return sorted({s.split(":")[-1] for t in introspect_tests(folder) for s in t["suite"]})


def programs(folder, suites):
    """ninja targets of these suites' programs and of what they load; none: everything."""
    tests = introspect_tests(folder) if suites else []
    mine = [t for t in tests if {s.split(":")[-1] for s in t["suite"]} & set(suites)]
    loaded = {d for t in mine for d in t["depends"]}
    files = [f for t in introspect("targets", folder) if t["id"] in loaded for f in t["filename"]] if loaded else []
    names = {os.path.relpath(p, folder) for p in [t["cmd"][0] for t in mine] + files}
    return sorted(n for n in names if not n.startswith(".."))  # scripts are not built


def build(folder, options, tally, suites=None):
    """Configures and builds `folder` (for `suites`: only what their tests need); a failure is one
    failed case and its output is shown."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    configured = (folder / "build.ninja").exists()
    setup = ["meson", "configure", str(folder)] if configured else ["meson", "setup", str(folder)]
    log = folder.parent / (folder.name + ".log")
    for step in (lambda: setup + options, lambda: ["ninja", "-k", "20", "-C", str(folder), *programs(folder, suites)]):
        command = step()
        status = run(command, 600, log) # CUDA's templates take minutes of two cores
        if status != 0:
            why = "ran out of time" if status is None else f"exit {status}"
            print(errors(log) or tail(log), flush=True)
            tally.fail(f"build of {folder.name}", f"{' '.join(command[:2])}: {why}")
            return False
    log.unlink()
    return True


def cmocka_cases(test):
    """(passed, failed, skipped) names of one program of meson's log, from cmocka's lines."""
    text = test.get("stdout", "") + "\n" + test.get("stderr", "")
    # The list at the end of a failed run names its cases again, hence sets.
    cases = {kind: sorted(set(re.findall(rf"^\[\s*{word}\s*\] (\w+)$", text, re.M)))
             for kind, word in (("ok", "OK"), ("failed", "FAILED"), ("skipped", "SKIPPED"))}
    tally = re.findall(r"^(\d+) passed, (\d+) failed", text, re.M)  # programs with a harness of their own
    if not any(cases.values()) and tally:
        cases["ok"] = [f"case {i}" for i in range(int(tally[-1][0]))]
        cases["failed"] = [f"case {i}" for i in range(int(tally[-1][1]))]
    return cases["ok"], cases["failed"], cases["skipped"]


def skip_reason(test, case):
    text = test.get("stdout", "") + "\n" + test.get("stderr", "")
    lines = [l for l in text.splitlines() if re.search(r"\bskip", l, re.I) and not l.startswith("[")]
    return next((l for l in lines if case in l), lines[0] if lines else "no reason printed")


def count_meson_test(test, suffix, tally):
    name = test["name"].split(" / ")[-1].removeprefix("hadal:") + suffix
    ok, failed, skipped = cmocka_cases(test)
    if not ok and not failed and not skipped:
        ok = [name] if test["result"] == "OK" else []
    tally.passed += len(ok)
    tally.skipped += [(f"{name}: {case}", skip_reason(test, case)) for case in skipped]
    for case in failed:
        tally.fail(f"{name}: {case}")
    if test["result"] not in ("OK", "SKIP", "EXPECTEDFAIL") and not failed:
        tally.fail(name, test["result"].lower())
    if test["result"] == "SKIP" and not skipped:
        tally.skipped.append((name, skip_reason(test, name)))
    if test["result"] not in ("OK", "SKIP", "EXPECTEDFAIL"):
        print(f"--- {name}: {test['result']}")
        output = test.get("stdout", "") + test.get("stderr", "")
        print("\n".join(output.splitlines()[-60:]), flush=True)


def meson_tests(folder, suites, suffix, tally, limit_s, multiplier=1):
    log = folder / "meson-logs" / "testlog.json"
    log.unlink(missing_ok=True)
    command = ["meson", "test", "-C", str(folder), "--no-rebuild", "--num-processes", "2",
               "--timeout-multiplier", str(multiplier)]
    for suite in suites:
        command += ["--suite", suite]
    env = {"ASAN_OPTIONS": "detect_leaks=1:abort_on_error=0", "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1"}
    status = run(command, limit_s, folder / "tests.log", env)
    tests = [json.loads(l) for l in log.read_text().splitlines()] if log.exists() else []
    for test in tests:
        count_meson_test(test, suffix, tally)
    if status is None:
        tally.fail(f"meson test{suffix}", "ran out of time")
    elif not tests:
        print(tail(folder / "tests.log"))
        tally.fail(f"meson test{suffix}", "no test ran")
    say(f"{len(tests)} test programs{suffix or ''} ({', '.join(suites) or 'all suites'})")


def part_sanitize(args, tally):
    folder = Path(args.build + "-asan").resolve()
    say("building with ASan and UBSan")
    # Instrumented code makes gcc warn about what is not there: only the release build must be silent.
    options = ["-Ddebug=true", "-Doptimization=1", "-Db_sanitize=address,undefined", "-Db_lundef=false", "-Dwerror=false"]
    if build(folder, options, tally, ["unit", "sim"]):
        suites = [s for s in suites_of(folder) if s in ("unit", "sim")]
        meson_tests(folder, suites, " (ASan+UBSan)", tally, 240, 4)


def part_meson(args, tally, which):
    folder = Path(args.build).resolve()
    built, own = suites_of(folder), {"sim": ["sim"], "rdma": ["rdma-vm", "rdma-vm-faults"]}
    if which in own:
        suites = [s for s in built if s in own[which][:None if args.only else 1]]
    else:
        suites = [s for s in built if s not in sum(own.values(), []) and s != "bench"]
    if not suites and which == "rdma":
        tally.skipped.append((which, "built without the headers of libibverbs and librdmacm"))
        return
    if not suites:
        tally.fail(which, "no such test suite is built")
        return
    meson_tests(folder, suites, "", tally, 800 if args.only else 420 if which == "rdma" else 240)


def count_junit(report, part, tally):
    for case in xml.parse(report).getroot().iter("testcase"):
        name = f"{part}: {case.get('classname', '').split('.')[-1]}::{case.get('name')}"
        outcome = {e.tag: (e.get("message") or "").split("\n")[0] for e in case}
        if "skipped" in outcome:
            tally.skipped.append((name, outcome["skipped"]))
        elif "failure" in outcome or "error" in outcome:
            tally.fail(name, outcome.get("failure") or outcome.get("error"))
        else:
            tally.passed += 1


def part_pytest(args, tally, part):
    folder = Path(args.build).resolve()
    report, log = folder / f"{part}.xml", folder / f"{part}.log"
    report.unlink(missing_ok=True)
    command = ["/usr/bin/python3", "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}",
               "-o", "junit_family=xunit1", PYTEST_OF[part]]
    if part == "e2e": # clusters mostly wait; the tests of a file share theirs
        command += ["-n", "3", "--dist", "loadfile"]
    env = {"HADAL": str(folder / "hadal"), "HADAL_TEST_QUICK": "1" if args.quick else "",
           "PYTHONDONTWRITEBYTECODE": "1"}
    status = run(command, 540, log, env)
    if report.exists():
        count_junit(report, part, tally)
    if status is None:
        tally.fail(part, "ran out of time")
    elif status != 0 and not report.exists():
        tally.fail(part, f"pytest exited with {status}")
    if status != 0:
        print(tail(log, 80), flush=True)
    say(f"{part}: {tail(log, 1)}")


def main():
    parser = argparse.ArgumentParser(prog="tools/test", description="Builds Hadal and runs all its tests.")
    parser.add_argument("--quick", action="store_true", help="no sanitizer build, no emulated machine, fewer rounds end to end")
    parser.add_argument("--only", choices=PARTS, action="append", help="only this part; may be given several times")
    parser.add_argument("--build", default=str(ROOT / "build"), metavar="DIR", help="build folder (default: build)")
    args = parser.parse_args()
    parts = args.only or [p for p in PARTS if not (args.quick and p in ("rdma", "sanitize"))]
    tally = Tally()
    if args.quick and not args.only:
        tally.skipped.append(("rdma", "verbs in an emulated machine: not when --quick"))
    built = True
    if set(parts) - {"sanitize"}:
        say("building")
        built = build(Path(args.build).resolve(), ["-Dbuildtype=release", "-Dwerror=true"], tally)
    for part in parts:
        if part == "sanitize":
            part_sanitize(args, tally)
        elif not built:
            tally.fail(part, "not run: the build failed")
        elif part in PYTEST_OF:
            part_pytest(args, tally, part)
        else:
            part_meson(args, tally, part)
    for case, why in tally.skipped:
        print(f"SKIPPED {case}: {why}")
    for case, why in tally.failed:
        print(f"FAILED  {case}{': ' + why if why else ''}")
    print(f"took {time.monotonic() - START:.0f} s")
    print(tally.line(), flush=True)
    return 1 if tally.failed or not tally.passed else 0


if __name__ == "__main__":
    sys.exit(main())
