"""The dashboard in a real browser: what it shows, what it changes after confirmation, and that hostile text stays text."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.forward import forwarded
from support.lab import TestLab

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


def test_nodes_show_their_tasks(page: Any) -> None:
    page.get_by_label("node m1").wait_for()
    page.get_by_label("node w1").wait_for()
    assert page.locator(".tile").count() == 2
    _picture(page, "cluster-light")


def test_scaling_asks_first_and_works_by_keyboard(page: Any, lab: TestLab) -> None:
    _view(page, "Services")
    _picture(page, "services-light")
    scale = page.get_by_label("service web", exact=True).get_by_role("button", name="Scale")
    scale.focus()
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


def test_logs_are_text(page: Any) -> None:
    page.get_by_label("service web", exact=True).get_by_role("button", name="Logs").click()
    page.get_by_role("log").get_by_text(_HOSTILE).first.wait_for()
    _picture(page, "logs")
    assert page.title() == "fleet" and page.get_by_role("log").locator("img").count() == 0
    page.get_by_role("button", name="Close").click()


def test_draining_moves_tasks_and_events_tell(page: Any) -> None:
    _view(page, "Cluster")
    page.get_by_label("node w1").get_by_role("button", name="Drain").click()
    page.get_by_role("dialog").get_by_role("button", name="Drain").click()
    page.get_by_label("node w1").get_by_text("0 tasks").wait_for(timeout=60_000)
    _view(page, "Events")
    page.get_by_text("node update").first.wait_for()
    page.get_by_text("container start").first.wait_for()
    _picture(page, "events")


@pytest.mark.parametrize("view", ["Cluster", "Services", "Tasks", "Stacks", "Events"])
def test_a_narrow_window_needs_no_sideways_scrolling(page: Any, view: str) -> None:
    page.set_viewport_size({"width": 360, "height": 740})
    page.emulate_media(color_scheme="dark")
    _view(page, view)
    _picture(page, f"narrow-{view.lower()}")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert page.faults == []
