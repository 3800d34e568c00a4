"""The layer law on #include lines: which folder may see which, and who may see the outside
libraries that would otherwise creep in everywhere (uv, CUDA, verbs, curl, protobuf-c)."""

import pathlib
import re
import subprocess

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
FOLDERS = ["base", "proto", "text", "kernels", "rdma", "node", "coordinator", "client"]
MAY_SEE = {
    "base": {"base"},
    "proto": {"base", "proto"},
    "text": {"base", "text"},
    "kernels": {"base", "kernels"},
    "rdma": {"base", "rdma"},
    "node": {"base", "proto", "text", "kernels", "rdma", "node"},
    "coordinator": {"base", "proto", "text", "coordinator"},
    "client": {"base", "proto", "client"},
}
# Header pattern -> pattern of the files that may include it.
OUTSIDE = {
    r"uv\.h": r".*_(shell|uv)\.[ch]|tools/[^/]+\.c|tests/.*",
    r"h2o(/.*)?\.h": r"coordinator/.*|tests/.*",
    r"(cuda|cublas|nvml).*\.h": r"kernels/(cuda|lab)/.*",
    r"nccl\.h": r"kernels/cuda/.*",
    r"(infiniband|rdma)/.*": r"rdma/.*verbs.*|tests/.*verbs.*",
    r"curl/.*": r"tools/.*|coordinator/store_etcd\.c",
    r"protobuf-c/.*": r"proto/.*",
    r"pcre2\.h": r"text/.*",
    r"openssl/.*": r"proto/secure\.c|coordinator/.*_shell\.c|tests/.*",
}
INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]', re.M)


def sources(folder):
    return sorted(p for e in ("*.c", "*.h", "*.cu", "*.cuh") for p in (ROOT / folder).rglob(e))


def includes(path):
    return [(m[1] == '"', m[2]) for m in INCLUDE.finditer(path.read_text())]


def breaches_inside(folder):
    for path in sources(folder):
        for quoted, name in includes(path):
            top = name.split("/")[0]
            if quoted and top in FOLDERS + ["tools", "tests"] and top not in MAY_SEE[folder]:
                yield f"{path.relative_to(ROOT)} includes {name}"


@pytest.mark.parametrize("folder", FOLDERS)
def test_folder_sees_only_what_is_below(folder):
    assert list(breaches_inside(folder)) == []


@pytest.mark.parametrize("header", OUTSIDE)
def test_outside_headers_stay_where_they_belong(header):
    found = []
    for folder in FOLDERS + ["tools", "tests"]:
        for path in sources(folder):
            name = str(path.relative_to(ROOT))
            if re.fullmatch(OUTSIDE[header], name):
                continue
            found += [f"{name} includes {h}" for q, h in includes(path) if not q and re.fullmatch(header, h)]
    assert found == []


def pkg_flags():
    names = ["libuv", "libprotobuf-c", "libcyaml", "jansson", "libpcre2-8", "libcurl"]
    return subprocess.run(["pkg-config", "--cflags", *names], check=True, capture_output=True, text=True).stdout.split()


@pytest.mark.parametrize("folder", FOLDERS + ["tools"])
def test_every_header_compiles_alone(folder):
    # kernels/cuda needs the toolkit's headers, which need not be there; the module's build sees them.
    headers = [p for p in sources(folder) if p.suffix == ".h" and "pb-c" not in p.read_text() and p.parent.name != "cuda"]
    flags = ["-std=gnu17", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Werror", "-Wno-psabi", "-Wno-unused-parameter", f"-I{ROOT}", *pkg_flags()]
    broken = []
    for path in headers:
        # Included, not compiled itself: gcc warns about #pragma once in a main file.
        r = subprocess.run(["cc", *flags, "-fsyntax-only", "-xc", "-"], text=True, capture_output=True,
                           input=f'#include "{path.relative_to(ROOT)}"\n')
        if r.returncode:
            broken.append(r.stderr)
    assert broken == []


def test_uv_is_not_seen_through_headers():
    """A header of a core that includes <uv.h> would give it to everybody."""
    cores = [p for f in FOLDERS for p in sources(f) if p.suffix == ".h" and not re.search(r"_(shell|uv)\.h$", p.name)]
    assert [str(p) for p in cores if (False, "uv.h") in includes(p)] == []
