"""The part of ``scripts/test-elsewhere`` that runs here: drives pytest on another machine test by test, shows each result as it
comes, and keeps them in files of this machine, so that they survive whatever happens to the other one.

    dist/elsewhere/NAME.jsonl   the results, one a line, written as they come: what ``--from last`` goes on after
    dist/elsewhere/NAME.txt     the same for people, written anew after each test
    dist/elsewhere/NAME.log     everything the machine said

One pytest runs all tests, since starting it is what takes long on a slow machine. A test beyond its limit is ended by the plugin
there (`elsewhere_plugin`); when that does not help, pytest is killed, the test noted as *stuck*, and another pytest begins after
it. The same when pytest dies. When the machine is gone, that is said, with the words to go on.

Standard library only: it runs without an environment.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["Elsewhere", "Progress", "Result", "Results", "main", "slowness_of"]

MARK = "\x1efleet-test "
PLUGIN = "tests.support.elsewhere_plugin"
_ORDINARY_S = (0.09, 0.35)
"""What the two parts of `_MEASURE` take on the machine the tests' deadlines were chosen on."""
_MEASURE = """
import subprocess, sys, time
began = time.monotonic()
sum(number * number for number in range(1000000))
first = time.monotonic()
for _ in range(15): subprocess.run([sys.executable, "-I", "-S", "-c", "pass"], check=True)
print(first - began, time.monotonic() - first)
"""
_SLOWNESS_MAX = 60.0
_STUCK_GRACE_S = 60.0
"""Beyond a test's limit, for it to clean up; stretched."""
_SILENCE_S = 600.0
"""Between the start of pytest and its first word, for it to import and collect; stretched."""
_SAY_AFTER_S = 60.0
_FINE = ("passed", "skipped")


def slowness_of(measured: Sequence[float]) -> float:
    """How many times slower than an ordinary machine: the worse of arithmetic and starting processes, at least 1."""
    ratio = max(found / ordinary for found, ordinary in zip(measured, _ORDINARY_S, strict=True))
    return round(min(max(ratio, 1.0), _SLOWNESS_MAX), 1)


@dataclass(frozen=True, slots=True)
class Result:
    """``outcome``: passed, skipped, failed, error (around the test, or of its module), stuck, died."""

    test: str
    outcome: str
    seconds: float = 0.0
    text: str = ""

    def line(self, number: int, count: int) -> str:
        """The one for people."""
        return f"[{number:{len(str(count))}}/{count}] {self.outcome:<7} {self.seconds:8.1f} s  {self.test}"


@dataclass(slots=True)
class Results:
    """What is known of a run, in its files. ``heading`` says what machine and when."""

    folder: Path
    name: str
    heading: str = ""
    plan: list[str] = field(default_factory=list)
    by_test: dict[str, Result] = field(default_factory=dict)

    def begin(self, *, keep: bool) -> None:
        """Read what was kept, or begin anew."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if not keep:
            self._lines.unlink(missing_ok=True)
            self.log.unlink(missing_ok=True)
        elif self._lines.exists():
            text = self._lines.read_text()
            if not text.endswith("\n"):  # of a run that was killed while it wrote
                text = text[: text.rfind("\n") + 1]
                self._lines.write_text(text)
            for line in text.splitlines():
                result = Result(**json.loads(line))
                self.by_test.pop(result.test, None)
                self.by_test[result.test] = result

    def last(self) -> str:
        """The test that ended last; empty before the first."""
        return next(reversed(self.by_test), "")

    def add(self, result: Result) -> None:
        """On disk when this returns."""
        self.by_test.pop(result.test, None)
        self.by_test[result.test] = result
        with self._lines.open("a") as lines:
            lines.write(json.dumps(asdict(result)) + "\n")
            lines.flush()
            os.fsync(lines.fileno())
        self.write_summary()

    def write_summary(self) -> None:
        """The file for people; whole at any time."""
        new = self.summary.with_suffix(".new")
        new.write_text(self.text())
        new.replace(self.summary)

    def text(self) -> str:
        """Counts, what is wrong and why, then all."""
        results = list(self.by_test.values())
        counts = {name: sum(1 for each in results if each.outcome == name) for name in _outcomes(results)}
        left = [test for test in self.plan if test not in self.by_test]
        words = ", ".join(f"{count} {name}" for name, count in counts.items()) or "no test has ended yet"
        lines = [self.heading, f"{words}{f'; {len(left)} not run' if left else ''}", ""]
        for result in results:
            if result.outcome not in _FINE:
                lines += [f"{result.outcome}: {result.test}", *(f"    {line}" for line in result.text.splitlines()), ""]
        lines += [result.line(number, len(results)) for number, result in enumerate(results, 1)]
        skipped = [f"{each.test}: {each.text}" for each in results if each.outcome == "skipped"]
        lines += ["", "skipped:", *(f"  {line}" for line in skipped)] if skipped else []
        lines += ["", "not run:", *(f"  {test}" for test in left)] if left else []
        return "\n".join(lines) + "\n"

    @property
    def wrong(self) -> list[Result]:
        return [result for result in self.by_test.values() if result.outcome not in _FINE]

    @property
    def summary(self) -> Path:
        return self.folder / f"{self.name}.txt"

    @property
    def log(self) -> Path:
        return self.folder / f"{self.name}.log"

    @property
    def _lines(self) -> Path:
        return self.folder / f"{self.name}.jsonl"


def _outcomes(results: Sequence[Result]) -> list[str]:
    found = {result.outcome for result in results}
    return [name for name in ("passed", "skipped", "failed", "error", "stuck", "died") if name in found]


@dataclass(slots=True)
class Progress:
    """What one pytest has told. Pure."""

    planned: list[str] | None = None
    """What it is going to run; None until it said so."""
    pid: int = 0
    current: str = ""
    """The test that began and has not ended."""
    began: float = 0.0
    ended: set[str] = field(default_factory=set)
    refusal: str = ""

    def take(self, event: dict[str, Any], *, now: float) -> Result | None:
        """What a line means; a result when a test has ended."""
        match event.pop("event"):
            case "plan":
                self.planned, self.pid = event["tests"][event["first"] :], event["pid"]
            case "refused":
                self.refusal = event["text"]
            case "begun":
                self.current, self.began = event["test"], now
            case "ended":
                self.current = ""
                self.ended.add(event["test"])
                return Result(**event)
        return None

    def left_by_death(self, status: int, *, now: float) -> Result | None:
        """Called when pytest has ended: the test it died in, or that it died before; None when it ran all it was to run."""
        if self.current:
            return Result(
                self.current, "died", round(now - self.began, 1), f"pytest ended in it with exit code {status}"
            )
        for test in self.planned or ():
            if test not in self.ended:
                return Result(test, "died", 0.0, f"pytest ended before it with exit code {status}")
        return None


class Elsewhere:
    """A machine reached by ``via``, a command that runs its last argument in a shell there. ``place`` is the checkout there."""

    def __init__(
        self,
        via: Sequence[str],
        results: Results,
        *,
        place: str,
        python: str = ".venv/bin/python",
        limit_s: float,
        slowness: float = 1.0,
        grace_s: float = _STUCK_GRACE_S,
    ) -> None:
        """``limit_s`` of a test and ``grace_s`` after it are those of an ordinary machine."""
        self._via = list(via)
        self._results = results
        self._place = place
        self._python = python
        self._limit_s = limit_s
        self._slowness = slowness
        self._grace_s = grace_s

    def measure(self) -> float:
        """How slow the machine is; from now on that counts. Raises ``RuntimeError`` when it does not answer."""
        done = self._there(f"{self._python} -I -S -c {shlex.quote(_MEASURE)}")
        if done.returncode:
            raise RuntimeError(f"the machine does not say how fast it is: {done.stderr.strip()}")
        self._slowness = slowness_of([float(word) for word in done.stdout.split()])
        return self._slowness

    def run(self, tests: Sequence[str], *, start: str = "", after: str = "") -> bool:
        """Go through the tests (modules, or single ones), from ``start`` on or after ``after``. True when all have run, well or
        not; False when the machine is gone, or has no such tests.
        """
        while True:
            progress = Progress()
            with self._pytest(tests, start=start, after=after) as pytest:
                lost = self._follow(pytest, progress)
            if progress.refusal or progress.planned is None:
                self._say(f"stopped: {progress.refusal or f'pytest did not begin, see {self._results.log}'}")
                return False
            if lost is None:
                return True
            if lost.outcome == "died" and self._there("true").returncode:
                self._say(
                    f"stopped before the end of {lost.test}: the machine is not reached; --from last goes on with it"
                )
                return False
            self._note(lost)
            start, after = "", lost.test

    def _pytest(self, tests: Sequence[str], *, start: str, after: str) -> subprocess.Popen[str]:
        variables = {
            "FLEET_TEST_SLOWNESS": f"{self._slowness:g}",
            "FLEET_TEST_LIMIT": f"{self._limit_s * self._slowness:g}",
            "FLEET_TESTS_FROM": start,
            "FLEET_TESTS_AFTER": after,
        }
        words = [f"{name}={value}" for name, value in variables.items() if value]
        options = ["-m", "pytest", "-q", "-p", "no:randomly", "-p", "no:cacheprovider", "-p", PLUGIN]
        command = shlex.join(["env", *words, self._python, *options, "--continue-on-collection-errors", *tests])
        return subprocess.Popen(
            [*self._via, f"cd {shlex.quote(self._place)} && {command}"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )

    def _follow(self, pytest: subprocess.Popen[str], progress: Progress) -> Result | None:
        """Note what comes until pytest ends or has to be ended; the test that was lost then."""
        lines: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=_read, args=(pytest, lines), daemon=True).start()
        limit_s, stuck_s = self._limit_s * self._slowness, (self._limit_s + self._grace_s) * self._slowness
        began, said = time.monotonic(), 0.0
        with self._results.log.open("a") as log:
            while True:
                try:
                    line = lines.get(timeout=1)
                except queue.Empty:
                    now = time.monotonic()
                    spent_s = now - progress.began
                    if progress.current and spent_s > stuck_s:
                        self._kill(pytest, progress.pid)
                        return Result(progress.current, "stuck", round(spent_s, 1), "did not end at its limit: killed")
                    if progress.planned is None and now - began > _SILENCE_S * self._slowness:
                        self._kill(pytest, 0)
                        return None
                    if progress.current and now - max(progress.began, said) > _SAY_AFTER_S:
                        said = now
                        self._say(f"    {spent_s:.0f} of at most {limit_s:.0f} s in {progress.current}")
                    continue
                if line is None:
                    return progress.left_by_death(pytest.wait(), now=time.monotonic())
                if not line.startswith(MARK):
                    log.write(line)
                    log.flush()
                    continue
                result = progress.take(json.loads(line.removeprefix(MARK)), now=time.monotonic())
                if result is not None:
                    self._note(result)
                elif progress.planned is not None and not self._results.plan:
                    self._results.plan = list(progress.planned)

    def _note(self, result: Result) -> None:
        self._results.add(result)
        number = len(self._results.by_test)
        left = sum(1 for test in self._results.plan if test not in self._results.by_test)
        self._say(result.line(number, number + left))
        if result.outcome not in _FINE:
            self._say("\n".join(f"    {line}" for line in result.text.splitlines()[-12:]))

    def _kill(self, pytest: subprocess.Popen[str], pid: int) -> None:
        """There first, so that nothing is left that would disturb the next; then the way to it."""
        if pid:
            self._there(f"kill -9 -- -{pid}")
        pytest.kill()

    def _there(self, command: str) -> subprocess.CompletedProcess[str]:
        line = [*self._via, f"cd {shlex.quote(self._place)} && {command}"]
        try:
            return subprocess.run(
                line, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300, check=False
            )
        except subprocess.TimeoutExpired:
            return subprocess.CompletedProcess(line, 124, "", "no answer within 300 s")

    @staticmethod
    def _say(text: str) -> None:
        print(text, flush=True)


def _read(pytest: subprocess.Popen[str], lines: queue.Queue[str | None]) -> None:
    assert pytest.stdout is not None
    for line in pytest.stdout:
        lines.put(line)
    lines.put(None)


def main(arguments: Sequence[str]) -> int:
    """Exit status: 0 all passed or skipped, 1 something is wrong, 2 words not understood, 3 stopped before the end."""
    parser = argparse.ArgumentParser(prog="scripts/test-elsewhere", allow_abbrev=False)
    parser.add_argument("--name", required=True)
    parser.add_argument("--heading", default="")
    parser.add_argument("--place", required=True)
    parser.add_argument("--folder", type=Path, default=Path("dist/elsewhere"))
    parser.add_argument("--from", dest="start", default="")
    parser.add_argument("--limit", type=float, default=120.0)
    parser.add_argument("--slowness", type=float, default=0.0)
    parser.add_argument("--via", required=True)
    parser.add_argument("tests", nargs="+")
    options = parser.parse_args(arguments)
    results = Results(options.folder, options.name, f"{options.heading}; began {time.strftime('%Y-%m-%d %H:%M:%S')}")
    goes_on = options.start == "last"
    results.begin(keep=bool(options.start))
    if goes_on and not results.last():
        print(f"test-elsewhere: --from last: {options.folder}/{options.name}.jsonl has no result yet", file=sys.stderr)
        return 2
    machine = Elsewhere(
        options.via.split(), results, place=options.place, limit_s=options.limit, slowness=options.slowness or 1.0
    )
    slowness = options.slowness or machine.measure()
    print(
        f"test-elsewhere: {slowness:g} times slower than ordinary: a test may take {options.limit * slowness:.0f} s",
        flush=True,
    )
    whole = machine.run(options.tests, start="" if goes_on else options.start, after=results.last() if goes_on else "")
    results.write_summary()
    print(f"test-elsewhere: {results.text().splitlines()[1]}; {results.summary}")
    return 3 if not whole else 1 if results.wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
