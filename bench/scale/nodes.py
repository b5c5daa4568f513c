"""The processes that nodes are in, as the story's side sees them."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

from fleet import errors

__all__ = ["Group", "Nodes"]

_END_S: Final = 10.0
_REPOSITORY: Final = Path(__file__).parents[2]


class Group:
    """One process with ``count`` nodes."""

    def __init__(self, first: int, count: int) -> None:
        self.count = count
        self.is_lost = False
        self._lock = threading.Lock()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.scale.speaker", str(first), str(count)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=_REPOSITORY,
            start_new_session=True,  # ^C is for the story, which ends these
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    def ask(self, do: str, **order: Any) -> dict[str, Any]:
        """The answer to one order. Raises ``UnavailableError`` when the process has ended or could not do it."""
        with self._lock:
            assert self._process.stdin is not None
            assert self._process.stdout is not None
            try:
                self._process.stdin.write(json.dumps({"do": do, **order}) + "\n")
                self._process.stdin.flush()
                line = self._process.stdout.readline()
            except BrokenPipeError:
                line = ""
        if not line:
            raise errors.UnavailableError(f"a process of nodes has ended with {self._process.poll()}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise errors.UnavailableError(f"nodes cannot {do}: {answer['error']}")
        return answer

    def lose(self) -> None:
        """All its nodes fall silent at once, as without power: their connections stay and say nothing more."""
        self.is_lost = True
        self._process.send_signal(signal.SIGSTOP)

    def end(self) -> None:
        """Kill it: it has nothing to tidy up."""
        self._process.kill()
        self._process.wait(_END_S)
        with self._lock:  # whoever still waits for an answer has found the end of the output by now
            for stream in (self._process.stdin, self._process.stdout):
                if stream is not None:
                    with contextlib.suppress(BrokenPipeError):
                        stream.close()


class Nodes:
    """``groups`` processes, and one more with those that are to be lost, which is the last."""

    def __init__(self, count: int, *, groups: int, lost: int) -> None:
        self.count = count
        self.groups: list[Group] = []
        sizes = [(count - lost) // groups + (number < (count - lost) % groups) for number in range(groups)] + [lost]
        try:
            first = 1
            for size in sizes:
                if size:
                    self.groups.append(Group(first, size))
                    first += size
        except BaseException:
            self.end()
            raise

    def __enter__(self) -> Nodes:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.end()

    @property
    def alive(self) -> list[Group]:
        return [group for group in self.groups if not group.is_lost]

    def ask(self, do: str, **order: Any) -> list[dict[str, Any]]:
        """The same order to all that are not lost, at once. Interrupted, it ends them: nothing else ends the waiting."""
        with ThreadPoolExecutor(max_workers=max(len(self.groups), 1)) as pool:
            try:
                return list(pool.map(lambda group: group.ask(do, **order), self.alive))
            except BaseException:
                self.end()
                raise

    def total(self) -> dict[str, int]:
        """Sums of what they say of themselves. Raises ``RuntimeFault`` when a session has ended for good."""
        sums: dict[str, int] = {}
        for each in self.ask("stats"):
            if each["failed"]:
                raise errors.RuntimeFault(f"a node's session ended for good: {each['failed'][0]}")
            for what, number in each.items():
                if isinstance(number, int):
                    sums[what] = sums.get(what, 0) + number
        return sums

    def pids(self) -> Sequence[int]:
        return [group.pid for group in self.alive]

    def end(self) -> None:
        for group in self.groups:
            group.end()
        self.groups = []
