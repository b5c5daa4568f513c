"""The validation programs of opencontainers/runtime-tools against fleet's OCI command line, crun and runc, in one run.

``scripts/oci-conformance`` builds them and calls this. A program passes when it exits with 0, has no assertion that is
``not ok`` and, if it asserts something, the number of assertions it planned; some assert nothing and print an ``error``.
crun and runc refuse bundles of a specification newer than themselves, so theirs get 1.0.2 written over it.

What nobody passes on a host of today is the suite's own: it compares pointers (pids), wants limits of kernel memory
and leaf weights that Linux has dropped, prestart hooks at ``start``, where version 1.0.2 moved them to ``create``, and
kills a container that has ended.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
COMMANDS = {"fleet": f"{ROOT}/.venv/bin/fleet-oci", "crun": "crun", "runc": "runc"}
TIMEOUT_S = 120.0
_GROUPS = ("cgrouptest", "testdir")
"""Control groups that the programs name, in the root of each hierarchy."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Of one program against one runtime."""

    passed: bool
    good: int
    bad: tuple[str, ...]
    """Assertions that are not ok; or why there are none."""


def judge(output: str, status: int | None) -> Verdict:
    """Read what a program printed; ``status`` None is one that did not end."""
    good = len(re.findall(r"^ok\b", output, re.MULTILINE))
    bad = [
        line[7:] for line in re.findall(r"^not ok\b.*", output, re.MULTILINE) if not re.search(r"# (TODO|SKIP)", line)
    ]
    planned = re.search(r"^1\.\.(\d+)$", output, re.MULTILINE)
    if status != 0:
        bad.append("it did not end" if status is None else f"exit status {status}")
    elif not good and not bad:
        bad += re.findall(r'"error": "(.*)"', output)
    elif not bad and (planned is None or int(planned[1]) != good):
        bad.append(f"{good} assertions of {planned[1] if planned else 'an unknown number'}")
    return Verdict(not bad, good, tuple(bad))


def wrapper(name: str, folder: Path) -> Path:
    """An executable for ``RUNTIME``: the programs know no flags before the command."""
    path = folder / name
    lower = ""
    if name != "fleet":
        lower = """
for word; do
    [ "$before" = --bundle ] && sed -i 's/"ociVersion": "1[.0-9]*"/"ociVersion": "1.0.2"/' "$word/config.json" 2>/dev/null
    before=$word
done"""
    path.write_text(f'#!/bin/sh{lower}\nexec {COMMANDS[name]} --root {folder}/{name}.state "$@"\n')
    path.chmod(0o755)
    return path


def run_program(program: Path, runtime: Path, scratch: Path) -> Verdict:
    """Run one in the folder that has the root file system and ``runtimetest``; what it leaves is removed.

    In a mount namespace that ends with it: some runtimes mount on the host for a container without one of its own.
    """
    scratch.mkdir()
    environment = {**os.environ, "RUNTIME": str(runtime), "TMPDIR": str(scratch)}
    status: int | None
    with tempfile.TemporaryFile("w+", errors="replace") as output:
        try:
            status = subprocess.run(
                ["unshare", "-m", program],
                cwd=program.parents[1],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.DEVNULL,
                timeout=TIMEOUT_S,
                check=False,
            ).returncode
        except subprocess.TimeoutExpired:
            status = None
        output.seek(0)
        verdict = judge(output.read(), status)
    listed = subprocess.run([runtime, "list", "-q"], capture_output=True, text=True, check=False).stdout.split()
    for container in listed:
        subprocess.run([runtime, "delete", "--force", container], capture_output=True, check=False)
    shutil.rmtree(scratch, ignore_errors=True)
    _tidy()
    return verdict


def _tidy() -> None:
    for hierarchy in Path("/sys/fs/cgroup").iterdir():
        for name in _GROUPS:
            for directory in sorted((hierarchy / name).glob("**/"), reverse=True):
                try:
                    directory.rmdir()
                except OSError:
                    continue


def main(arguments: list[str]) -> int:
    """The folder with the programs, and names of them; all when none is given. 1 when a peer passes more than fleet."""
    built, wanted = Path(arguments[0]), arguments[1:]
    programs = sorted(path for path in (built / "validation").iterdir() if not wanted or path.name in wanted)
    names = [name for name in os.environ.get("FLEET_OCI_RUNTIMES", " ".join(COMMANDS)).split() if name in COMMANDS]
    if not programs or not names:
        print(f"oci-conformance: nothing to run: no program is named {', '.join(wanted)}", file=sys.stderr)
        return 2
    totals = {name: [0, 0, 0] for name in names}
    with tempfile.TemporaryDirectory(prefix="fleet-conformance-") as folder:
        Path(folder).chmod(0o755)  # root of a user namespace has to get through
        runtimes = {name: wrapper(name, Path(folder)) for name in names}
        print(f"{'program':34}" + "".join(f"{name:>14}" for name in names), flush=True)
        for program in programs:
            row, why = "", []
            for name, runtime in runtimes.items():
                verdict = run_program(program, runtime, Path(folder) / "scratch")
                totals[name][0] += verdict.passed
                totals[name][1] += verdict.good
                totals[name][2] += verdict.good + len(verdict.bad)
                row += f"{'pass' if verdict.passed else f'{verdict.good} ok':>14}"
                why += [f"    {name}: {text}" for text in verdict.bad[:2]]
            print(f"{program.name:34}{row}", *why, sep="\n", flush=True)
    print(f"\n{'programs passed of ' + str(len(programs)):34}" + "".join(f"{totals[name][0]:14}" for name in names))
    assertions = (f"{totals[name][1]}/{totals[name][2]}" for name in names)
    print(f"{'assertions':34}" + "".join(f"{text:>14}" for text in assertions))
    return int(any(totals[name][0] > totals.get("fleet", totals[name])[0] for name in names))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
