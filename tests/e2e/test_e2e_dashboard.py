"""The dashboard in a real browser: what it shows, what it changes after confirmation, and that hostile text stays text.

Two managers of one lab; where a thousand tasks are needed they are pretended.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.forward import forwarded
from support.lab import TestLab

from bench.dashboard_api import PretendCluster, serving

pytestmark = [pytest.mark.e2e, pytest.mark.story]

playwright = pytest.importorskip("playwright.sync_api", reason="not run: needs playwright (scripts/setup installs it)")

_HOSTILE = "<img src=x onerror=document.title='taken'>"
_SAYS = ("sh", "-c", f'trap "exit 0" TERM; echo "{_HOSTILE}"; while :; do sleep 1 & wait $!; done')


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    program = shutil.which("chromium")
    if program is None:
        pytest.skip("not run: needs the package chromium (scripts/setup installs it)")
    with playwright.sync_playwright() as running:
        opened = running.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def lab(make_lab: Callable[..., TestLab]) -> TestLab:
    lab = make_lab(workers=1)
    lab.load_hello()
    lab.fleet("service", "create", "--name", "web", "--replicas", "2", "fleet/hello:1", *_SAYS)
    lab.wait_until(lambda: len(lab.tasks("web")) == 2, 60, what="2 tasks of web")
    return lab


@pytest.fixture(scope="module")
def page(lab: TestLab, browser: Any) -> Iterator[Any]:
    with forwarded(Path(lab.socket("m1"))) as url:
        page = browser.new_page()
        page.faults = []
        page.on("console", lambda message: message.type == "error" and page.faults.append(message.text))
        page.on("pageerror", lambda error: page.faults.append(str(error)))
        page.goto(url)
        yield page
        page.close()


def _picture(page: Any, name: str) -> None:
    folder = os.environ.get("FLEET_TEST_SCREENSHOTS")
    if folder:
        page.screenshot(path=f"{folder}/{name}.png")


def _view(page: Any, name: str) -> None:
    page.get_by_role("link", name=name, exact=True).click()


def test_nodes_show_their_tasks_and_what_each_of_them_uses(page: Any) -> None:
    page.get_by_label("node m1").wait_for()
    page.get_by_label("node w1").wait_for()
    assert page.locator(".tile").count() == 2
    for node in ("m1", "w1"):
        for what in ("CPU", "Memory"):
            chart = page.get_by_role("img", name=f"{what} of {node}, ")
            chart.locator("path.own").wait_for(state="attached", timeout=60_000)
    _picture(page, "cluster-light")


def test_scaling_asks_first_and_works_by_keyboard(page: Any, lab: TestLab) -> None:
    page.keyboard.press("2")
    scale = page.get_by_label("service web", exact=True).get_by_role("button", name="Scale")
    scale.focus()
    _picture(page, "services-light")
    page.keyboard.press("Enter")
    page.get_by_role("dialog").wait_for()
    page.keyboard.press("Escape")
    page.get_by_role("dialog").wait_for(state="detached")
    assert len(lab.tasks("web")) == 2
    scale.focus()
    page.keyboard.press("Enter")
    page.get_by_label("Replicas").fill("3")
    _picture(page, "scale")
    page.keyboard.press("Enter")
    page.get_by_text("3/3").wait_for()


def test_logs_are_text_and_say_of_which_task(page: Any) -> None:
    page.get_by_label("service web", exact=True).get_by_role("button", name="Logs").click()
    page.get_by_role("log").get_by_text(f"{_HOSTILE}").first.wait_for()
    page.get_by_role("log").get_by_text("web.1", exact=True).first.wait_for()
    _picture(page, "logs")
    assert page.title() == "fleet" and page.get_by_role("log").locator("img").count() == 0
    page.get_by_role("button", name="Close").click()


def test_an_update_that_pauses_says_why_and_is_rolled_back(page: Any, lab: TestLab) -> None:
    ends = ("--update-failure-action", "pause", "--update-monitor", "5s", "--restart-condition", "none")
    lab.fleet("service", "update", "--detach", *ends, "--args", "sh -c 'exit 7'", "web")
    card = page.get_by_label("service web", exact=True)
    card.get_by_text("Update paused", exact=True).wait_for(timeout=60_000)
    page.get_by_label("update of web").get_by_text(re.compile("update paused due to failure")).wait_for()
    page.get_by_label("update of web").get_by_role("progressbar").wait_for()
    _picture(page, "update-paused")
    card.get_by_role("button", name="Roll back").click()
    page.get_by_role("dialog").get_by_role("button", name="Roll back").click()
    card.get_by_text("Rolled back", exact=True).wait_for(timeout=60_000)
    card.get_by_role("link", name="web").click()
    page.get_by_text("non-zero exit (7)").first.wait_for()
    _picture(page, "service")


def test_draining_moves_tasks_and_events_tell(page: Any) -> None:
    _view(page, "Cluster")
    page.get_by_label("node w1").get_by_role("button", name="Drain").click()
    page.get_by_role("dialog").get_by_role("button", name="Drain").click()
    page.get_by_label("node w1").get_by_text("0 tasks").wait_for(timeout=60_000)
    _view(page, "Events")
    page.get_by_text("node update").first.wait_for()
    page.get_by_text("container start").first.wait_for()
    _picture(page, "events")


def test_a_worker_names_the_managers(lab: TestLab, browser: Any) -> None:
    with forwarded(Path(lab.socket("w1"))) as url:
        page = browser.new_page()
        page.goto(url)
        page.get_by_text("This host is a worker").wait_for()
        page.get_by_text(lab.address("m1"), exact=True).wait_for()
        page.close()


def test_fleet_dashboard_lets_one_browser_in_with_what_its_user_may(lab: TestLab, browser: Any) -> None:
    argv = [sys.executable, "-m", "fleet.cli.main", "dashboard", "--no-open"]
    with subprocess.Popen(argv, env=lab.command_environment("m1"), stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        link = running.stdout.readline().strip()
        context, other = browser.new_context(), browser.new_context()
        page, late = context.new_page(), other.new_page()
        page.goto(link.partition("#")[0])
        page.get_by_role("heading", name="Sign in").wait_for()
        page.goto(link)
        page.get_by_label("node w1").wait_for()
        assert "token" not in page.url
        page.reload()
        page.get_by_label("node w1").wait_for()
        page.get_by_label("node w1").get_by_role("button", name="Activate").click()
        page.get_by_role("dialog").get_by_role("button", name="Activate").click()
        page.get_by_label("node w1").get_by_role("button", name="Drain").wait_for()
        _view(page, "Services")
        page.get_by_label("service web", exact=True).get_by_role("button", name="Logs").click()
        page.get_by_role("log").get_by_text("web.1", exact=True).first.wait_for()
        late.goto(link)
        late.get_by_text("this link has let a browser in already").wait_for()
        _picture(late, "fleet-dashboard-used")
        running.send_signal(signal.SIGINT)
        assert running.wait(60) == 0
        context.close()
        other.close()


def test_a_host_without_a_cluster_says_how_to_start_and_follows_when_there_is_one(browser: Any) -> None:
    cluster = PretendCluster(nodes=3, tasks=6)
    there, cluster.swarm = cluster.swarm, {"LocalNodeState": "inactive"}
    with serving(cluster) as url:
        page = browser.new_page()
        page.goto(url)
        page.get_by_text("fleet swarm init", exact=True).wait_for()
        _picture(page, "start")
        cluster.swarm = there
        page.get_by_label("node n2").wait_for(timeout=60_000)
        page.close()


@pytest.mark.parametrize("view", ["Cluster", "Services", "Tasks", "Stacks", "Events"])
def test_a_narrow_window_needs_no_sideways_scrolling(page: Any, view: str) -> None:
    page.set_viewport_size({"width": 360, "height": 740})
    page.emulate_media(color_scheme="dark")
    _view(page, view)
    _picture(page, f"narrow-{view.lower()}")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert page.faults == []


@pytest.fixture(scope="module")
def thousand(browser: Any) -> Iterator[tuple[PretendCluster, Any]]:
    cluster = PretendCluster(nodes=50, tasks=1_000)
    with serving(cluster) as url:
        page = browser.new_page()
        page.add_init_script(
            "new MutationObserver((_, watch) => { window.first = document.querySelectorAll('.tile').length;"
            " if (window.first) watch.disconnect(); }).observe(document, { subtree: true, childList: true })"
        )
        page.goto(url)
        yield cluster, page
        page.close()


def test_a_thousand_tasks_are_shown_and_one_change_draws_one_node(thousand: tuple[PretendCluster, Any]) -> None:
    cluster, page = thousand
    page.get_by_text("1000 tasks run").wait_for(timeout=60_000)
    page.locator(".tile").nth(999).wait_for(state="attached", timeout=60_000)
    assert page.locator(".tile").count() == 1_000
    assert page.locator(".node").first.locator(".tile").count() <= page.evaluate("window.first") < 1_000, "all at once"
    page.evaluate(
        "window.changed = new Set(); new MutationObserver((all) => all.forEach((each) => { const node ="
        " each.target.closest && each.target.closest('.node'); if (node && each.target.matches('.tile'))"
        " window.changed.add(node.ariaLabel); }))"
        ".observe(document.body, { subtree: true, attributes: true, childList: true, attributeFilter: ['title', 'class'] })"
    )
    cluster.tell(cluster.task_line(7, version=2, state="starting"), cluster.service_line(0, version=2))
    page.get_by_title("shop0_s0.8: starting").wait_for(timeout=60_000)
    assert page.evaluate("[...window.changed]") == ["node n7"]


def test_the_list_of_tasks_holds_the_rows_that_are_seen_alone(thousand: tuple[PretendCluster, Any]) -> None:
    _, page = thousand
    page.keyboard.press("3")
    page.get_by_role("searchbox").wait_for()
    page.get_by_text("1000 tasks", exact=True).wait_for()
    rows = page.locator(".rows li")
    rows.first.wait_for()
    assert rows.count() < 100 and rows.first.get_attribute("aria-setsize") == "1000"
    page.evaluate("scrollTo(0, document.documentElement.scrollHeight)")
    page.locator(".rows li[aria-posinset='1000']").wait_for()
    assert rows.count() < 100
    page.keyboard.press("/")
    page.keyboard.type("n49")
    page.get_by_text("20 tasks", exact=True).wait_for()


def test_managers_without_a_majority_are_told(thousand: tuple[PretendCluster, Any]) -> None:
    cluster, page = thousand
    cluster.stale_s = "41"
    page.get_by_text("as it was 41 s ago").wait_for(timeout=60_000)
    cluster.stale_s = ""
    page.get_by_text("no majority").wait_for(state="detached", timeout=60_000)


def test_a_manager_that_comes_back_is_told_from_the_start(thousand: tuple[PretendCluster, Any]) -> None:
    cluster, page = thousand
    page.keyboard.press("Escape")
    _view(page, "Cluster")
    cluster.tell({"Type": "reset"}, cluster.node_line(0), cluster.task_line(0), {"Type": "synced"})
    page.get_by_text("1 task runs").wait_for(timeout=60_000)
    assert page.locator("section.node").count() == 1
