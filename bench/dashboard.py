"""The dashboard in headless Chromium: first paint, many tasks drawn, one event and many applied.

    scripts/bench dashboard        or        python -m bench.dashboard [--json FILE] [--no-lab]

The API is pretended (``dashboard_api``) and the page with its headers is the real one, so sizes need no containers; ``lab`` is
a real manager with a worker and four tasks. Columns: ``paint`` until the browser has painted anything, ``seen`` until the nodes
that fit into the window are there with their tasks, ``drawn`` until all are, from the navigation's begin with an empty cache;
``drawing`` the main thread's processor time for that, which like ``requests``, those of a second visit (``again``) and the size
of the first's (``KiB``) does not depend on what else the machine does; ``event`` from the server's write of one task's new
state until the frame that shows it, median and worst of a hundred; ``work`` the main thread's processor time for one of those;
``burst`` a thousand events within a second: the longest time without a frame; ``tasks`` the switch to the list of all tasks.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import secrets
import shutil
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from bench.dashboard_api import PretendCluster, serving
from bench.services import IMAGE, Cluster, import_image
from fleet.lab import Lab

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from support.forward import forwarded

SIZES: Final = ((4, 20), (50, 1_000), (200, 5_000))
EVENTS: Final = 100
BURST: Final = 1_000

_WATCH_TITLE = """([name, state]) => { window.seen = new Promise((done) => {
  const wanted = `${name}: ${state}`;
  const look = () => { if ([...document.querySelectorAll('.tile')].some((tile) => tile.title === wanted)) { observer.disconnect();
    requestAnimationFrame(() => setTimeout(() => done(performance.timeOrigin + performance.now()), 0)); } };
  const observer = new MutationObserver(look);
  observer.observe(document.body, { subtree: true, attributes: true, childList: true, attributeFilter: ['title'] });
}); return true; }"""
_WATCH_FRAMES = """() => { let last = performance.now(); window.longest = 0;
  const frame = (now) => { window.longest = Math.max(window.longest, now - last); last = now;
    window.frames = requestAnimationFrame(frame); };
  window.frames = requestAnimationFrame(frame); }"""


_MARK_DRAWN = """([nodes, tasks]) => {
  const mark = (name) => performance.getEntriesByName(name).length
    || requestAnimationFrame(() => setTimeout(() => performance.mark(name)));
  const look = () => { const cards = [...document.querySelectorAll('section.node')];
    if (cards.length !== nodes) return;
    if (cards.every((card) => card.getBoundingClientRect().top > innerHeight || card.querySelector('.tile'))) mark('seen');
    if (document.querySelectorAll('.tile').length >= tasks) { mark('drawn'); observer.disconnect(); } };
  const observer = new MutationObserver(look);
  observer.observe(document, { subtree: true, childList: true }); }"""


def _drawn_ms(page: Any, url: str, *, nodes: int, tasks: int) -> dict[str, float]:
    page.add_init_script(f"({_MARK_DRAWN})([{nodes}, {tasks}])")
    page.goto(url, wait_until="commit")
    page.wait_for_function("() => performance.getEntriesByName('drawn').length", polling=50, timeout=120_000)
    names = {"paint": "first-contentful-paint", "seen": "seen", "drawn": "drawn"}
    found = page.evaluate(
        "(names) => names.map((name) => performance.getEntriesByName(name)[0].startTime)", [*names.values()]
    )
    return dict(zip(names, found, strict=True))


class _Traffic:
    """What a page has asked the server for, rather than its cache, and how many bytes have come."""

    def __init__(self, session: Any) -> None:
        self._asked: set[str] = set()
        self.bytes = 0
        session.on("Network.requestWillBeSent", lambda told: self._asked.add(told["requestId"]))
        session.on("Network.requestServedFromCache", lambda told: self._asked.discard(told["requestId"]))
        session.on("Network.responseReceived", self._answered)
        session.on("Network.dataReceived", self._received)
        session.send("Network.enable")

    def _answered(self, told: Any) -> None:
        if told["response"].get("fromDiskCache"):
            self._asked.discard(told["requestId"])

    def _received(self, told: Any) -> None:
        self.bytes += max(0, told["encodedDataLength"])

    @property
    def requests(self) -> int:
        return len(self._asked)


def _busy_s(session: Any) -> float:
    """Processor time of the page's main thread: it does not depend on what else the machine does."""
    found = {each["name"]: each["value"] for each in session.send("Performance.getMetrics")["metrics"]}
    return float(found["TaskDuration"])


def measure(browser: Any, *, nodes: int, tasks: int) -> dict[str, float]:
    """One size. All in milliseconds."""
    cluster = PretendCluster(nodes=nodes, tasks=tasks)
    with (
        serving(cluster) as url,
        contextlib.closing(browser.new_context(viewport={"width": 1440, "height": 900})) as context,
    ):
        page = context.new_page()
        session = context.new_cdp_session(page)
        session.send("Performance.enable", {"timeDomain": "threadTicks"})
        traffic = _Traffic(session)
        result = _drawn_ms(page, url, nodes=nodes, tasks=min(tasks, nodes * 60))
        result["drawing"] = _busy_s(session) * 1000
        page.wait_for_selector("svg.spark path", state="attached")
        result |= {"requests": traffic.requests, "KiB": traffic.bytes / 1024}
        second = context.new_page()
        again = _Traffic(context.new_cdp_session(second))
        _drawn_ms(second, url, nodes=nodes, tasks=min(tasks, nodes * 60))
        second.wait_for_selector("svg.spark path", state="attached")
        result["again"] = again.requests
        second.close()
        page.bring_to_front()
        latencies = []
        busy = _busy_s(session)
        for event in range(EVENTS):
            state = "starting" if event % 2 == 0 else "running"
            name = cluster.service_line(0)["Object"]["Spec"]["Name"]
            page.evaluate(_WATCH_TITLE, [f"{name}.1", state])
            told = cluster.tell(cluster.task_line(0, version=event, state=state), cluster.service_line(0))
            latencies.append(float(page.evaluate("window.seen")) - told)
        work = (_busy_s(session) - busy) * 1000 / EVENTS
        page.evaluate(_WATCH_FRAMES)
        for number in range(BURST):
            cluster.tell(
                cluster.task_line(number % tasks, version=number, state="starting" if number % 3 else "running")
            )
            time.sleep(1 / BURST)
        page.wait_for_timeout(500)
        burst = float(page.evaluate("cancelAnimationFrame(window.frames), window.longest"))
        switch = page.evaluate("""async () => { const begin = performance.now(); location.hash = '#tasks';
          await new Promise((done) => {
            const look = () => document.querySelector('.rows .row') ? done() : requestAnimationFrame(look);
            look(); });
          return performance.now() - begin; }""")
        return {
            **result,
            "event": statistics.median(latencies),
            "event worst": max(latencies),
            "work": work,
            "burst": burst,
            "tasks": float(switch),
        }


@contextlib.contextmanager
def _lab_url() -> Iterator[str]:
    """Of a manager with a worker and a service of four tasks, in a lab of its own, by its unix socket."""
    lab = Lab(f"bench-{secrets.token_hex(3)}")
    cluster = Cluster("fleet", lab, [sys.executable, "-m", "fleet.cli.main"])
    with lab:
        lab.up(managers=1, workers=1)
        import_image(cluster)
        cluster.run("service", "create", "--name", "web", "--replicas", "4", IMAGE, "sleep", "3600")
        with forwarded(lab.socket("m1")) as url:
            yield url


_COLUMNS: Final = (
    "paint", "seen", "drawn", "drawing", "requests", "again", "KiB", "event", "event worst", "work", "burst", "tasks"
)  # fmt: skip


def _width(column: str) -> int:
    return max(9, len(column) + 2)


def run(json_path: str | None = None, *, with_lab: bool = True) -> None:
    """Print the table; write it to ``json_path`` as well."""
    from playwright.sync_api import sync_playwright

    program = shutil.which("chromium")
    if program is None:
        raise FileNotFoundError("chromium; install the package chromium")
    results: dict[str, dict[str, float]] = {}
    with sync_playwright() as running:
        browser = running.chromium.launch(executable_path=program, args=["--no-sandbox"])
        for nodes, tasks in SIZES:
            results[f"{nodes} nodes, {tasks} tasks"] = measure(browser, nodes=nodes, tasks=tasks)
        if with_lab:
            with _lab_url() as url, contextlib.closing(browser.new_context()) as context:
                results["lab: 2 nodes, 4 tasks"] = _drawn_ms(context.new_page(), url, nodes=2, tasks=4)
        browser.close()
    print(f"{'milliseconds':24}" + "".join(f"{column:>{_width(column)}}" for column in _COLUMNS))
    for name, result in results.items():
        shown = (f"{result[c]:{_width(c)}.1f}" if c in result else f"{'-':>{_width(c)}}" for c in _COLUMNS)
        print(f"{name:24}" + "".join(shown))
    if json_path:
        Path(json_path).write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--no-lab", action="store_true", help="pretended clusters alone; needs no root")
    options = parser.parse_args()
    run(options.json, with_lab=not options.no_lab)
