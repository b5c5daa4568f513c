"""Figures about a process, and how Prometheus reads them: counters, histograms, and the text format 0.0.4.

Parts count as they work, which costs a dictionary look-up; nothing is computed or formatted until somebody asks. A figure has
a bound on its label sets: what comes beyond is counted under ``other``, so no client can fill the memory with names.

Own code instead of ``prometheus_client``, whose import costs 6 MiB of the 60 an idle worker may use, for what is needed of it:
this page. Format: https://prometheus.io/docs/instrumenting/exposition_formats/ (text-based format).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

__all__ = ["CONTENT_TYPE", "LATENCY_S", "OTHER", "Counter", "Family", "Histogram", "Sample", "render"]

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
LATENCY_S: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper bounds of buckets, in seconds: from an answer out of memory to a client's patience."""
OTHER: Final = "other"
_SERIES_MAX: Final = 500


@dataclass(frozen=True, slots=True)
class Sample:
    """One line: ``suffix`` is appended to the family's name; ``labels`` are pairs."""

    labels: tuple[tuple[str, str], ...]
    value: float
    suffix: str = ""


@dataclass(frozen=True, slots=True)
class Family:
    """What has one name, in base units (seconds, bytes)."""

    name: str
    help: str
    kind: Literal["counter", "gauge", "histogram"]
    samples: Sequence[Sample]


class Counter:
    """Only grows, for as long as the process lives."""

    def __init__(self, name: str, help_: str, labels: Sequence[str] = (), *, series_max: int = _SERIES_MAX) -> None:
        self.name = name
        self._help = help_
        self._labels = tuple(labels)
        self._series_max = series_max
        self._values: dict[tuple[str, ...], float] = {} if self._labels else {(): 0}

    def inc(self, *values: str, by: float = 1) -> None:
        """``values``: one a label."""
        key = _bounded(self._values, values, self._labels, self._series_max)
        self._values[key] = self._values.get(key, 0) + by

    def family(self) -> Family:
        """As it is now."""
        return Family(
            self.name,
            self._help,
            "counter",
            [Sample(tuple(zip(self._labels, key, strict=True)), value) for key, value in self._values.items()],
        )


class Histogram:
    """How often a figure was at most so much. ``buckets``: upper bounds, rising."""

    def __init__(
        self,
        name: str,
        help_: str,
        labels: Sequence[str] = (),
        *,
        buckets: Sequence[float] = LATENCY_S,
        series_max: int = _SERIES_MAX,
    ) -> None:
        self.name = name
        self._help = help_
        self._labels = tuple(labels)
        self._buckets = tuple(buckets)
        self._series_max = series_max
        self._counts: dict[tuple[str, ...], list[int]] = {}
        self._sums: dict[tuple[str, ...], float] = {}
        if not self._labels:
            self._series(())

    def _series(self, key: tuple[str, ...]) -> list[int]:
        counts = self._counts.get(key)
        if counts is None:
            counts = self._counts[key] = [0] * (len(self._buckets) + 1)
            self._sums[key] = 0.0
        return counts

    def begin(self, *values: str) -> None:
        """Show the series at zero: what appears at one has, for Prometheus, never grown."""
        self._series(_bounded(self._counts, values, self._labels, self._series_max))

    def observe(self, figure: float, *values: str) -> None:
        """``values``: one a label."""
        key = _bounded(self._counts, values, self._labels, self._series_max)
        self._series(key)[bisect_left(self._buckets, figure)] += 1
        self._sums[key] += figure

    def family(self) -> Family:
        """As it is now."""
        samples = []
        for key, counts in self._counts.items():
            labels = tuple(zip(self._labels, key, strict=True))
            total = 0
            for bound, count in zip((*(f"{b:g}" for b in self._buckets), "+Inf"), counts, strict=True):
                total += count
                samples.append(Sample((*labels, ("le", bound)), total, "_bucket"))
            samples += [Sample(labels, self._sums[key], "_sum"), Sample(labels, total, "_count")]
        return Family(self.name, self._help, "histogram", samples)


def _bounded(
    known: dict[tuple[str, ...], object] | dict[tuple[str, ...], float] | dict[tuple[str, ...], list[int]],
    values: tuple[str, ...],
    labels: tuple[str, ...],
    series_max: int,
) -> tuple[str, ...]:
    assert len(values) == len(labels)
    return values if values in known or len(known) < series_max else (OTHER,) * len(labels)


def render(families: Iterable[Family]) -> bytes:
    """The exposition. Families without a sample are left out."""
    lines: list[str] = []
    for family in families:
        if not family.samples:
            continue
        text = family.help.replace("\\", r"\\").replace("\n", r"\n")
        lines += [f"# HELP {family.name} {text}", f"# TYPE {family.name} {family.kind}"]
        for sample in family.samples:
            pairs = ",".join(f'{name}="{_escaped(value)}"' for name, value in sample.labels)
            braced = f"{{{pairs}}}" if pairs else ""
            lines.append(f"{family.name}{sample.suffix}{braced} {sample.value!r}")
    return ("\n".join(lines) + "\n").encode()


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
