"""Going through tests on another machine. A folder of this one stands in for it, a shell for the way to it; pytest is real."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from support.elsewhere import Elsewhere, Progress, Result, Results, main, slowness_of

ROOT = Path(__file__).parents[2]
FIRST = """
import os, signal, time, pytest

def test_good():
    assert float(os.environ["FLEET_TEST_SLOWNESS"]) == 2

def test_bad():
    assert 1 == 2, "arithmetic"

@pytest.mark.skip(reason="not run: no such kernel")
def test_not_here():
    pass

def test_slow():
    time.sleep(60)

def test_stuck():
    signal.signal(signal.SIGALRM, signal.SIG_IGN)
    time.sleep(60)

@pytest.mark.parametrize("word", ["a b", "it's"])
def test_words(word):
    pass
"""
SECOND = """
import os

def test_deadly():
    os._exit(9)

def test_after():
    pass
"""
ALL = [
    ("first_test.py::test_good", "passed"),
    ("first_test.py::test_bad", "failed"),
    ("first_test.py::test_not_here", "skipped"),
    ("first_test.py::test_slow", "failed"),
    ("first_test.py::test_stuck", "stuck"),
    ("first_test.py::test_words[a b]", "passed"),
    ("first_test.py::test_words[it's]", "passed"),
    ("second_test.py::test_deadly", "died"),
    ("second_test.py::test_after", "passed"),
]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout elsewhere, with tests to go through and the plugin."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # others take longer to load than all these tests
    place = tmp_path / "place"
    (place / "tests/support").mkdir(parents=True)
    (place / "tests/support/elsewhere_plugin.py").write_text((ROOT / "tests/support/elsewhere_plugin.py").read_text())
    (place / "first_test.py").write_text(FIRST)
    (place / "second_test.py").write_text(SECOND)
    (place / "pytest.ini").write_text("[pytest]\n")
    return place


def machine(place: Path, results: Results, *, via: tuple[str, ...] = ("bash", "-c")) -> Elsewhere:
    return Elsewhere(via, results, place=str(place), python=sys.executable, limit_s=1, slowness=2, grace_s=0.5)


def outcomes(results: Results) -> list[tuple[str, str]]:
    return [(result.test, result.outcome) for result in results.by_test.values()]


def begun(folder: Path, *, keep: bool = False) -> Results:
    results = Results(folder, "v2", "a machine")
    results.begin(keep=keep)
    return results


def test_every_test_gets_its_word_whatever_others_do(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = begun(tmp_path / "kept")
    assert machine(place, results).run(["first_test.py", "second_test.py"])
    assert outcomes(results) == ALL
    told = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in told if line.startswith("[1/")] == ["passed"]
    assert any(line.startswith("[9/9] passed ") and line.endswith("second_test.py::test_after") for line in told)
    assert any("AssertionError: arithmetic" in line for line in told)
    assert "longer than 2 s, the limit of a test on this machine" in results.by_test["first_test.py::test_slow"].text
    text = results.summary.read_text()
    assert text.startswith("a machine\n4 passed, 1 skipped, 2 failed, 1 stuck, 1 died\n")
    assert "first_test.py::test_not_here: Skipped: not run: no such kernel" in text
    assert [result.test for result in results.wrong] == [
        test for test, outcome in ALL if outcome not in ("passed", "skipped")
    ]


def test_it_goes_on_after_the_last_result_of_a_run_that_was_cut_off(place: Path, tmp_path: Path) -> None:
    results = begun(tmp_path / "kept")
    for test, outcome in ALL[:7]:
        results.add(Result(test, outcome))
    with (tmp_path / "kept/v2.jsonl").open("a") as lines:
        lines.write('{"test": "first_te')  # as the power goes
    again = begun(tmp_path / "kept", keep=True)
    assert again.last() == "first_test.py::test_words[it's]"
    assert machine(place, again).run(["first_test.py", "second_test.py"], after=again.last())
    assert outcomes(again) == ALL
    assert outcomes(begun(tmp_path / "kept", keep=True)) == ALL
    assert begun(tmp_path / "kept").last() == ""


def test_it_begins_where_it_is_told_to(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = begun(tmp_path / "kept")
    assert machine(place, results).run(["first_test.py", "second_test.py"], start="test_after")
    assert outcomes(results) == ALL[-1:]
    assert not machine(place, results).run(["first_test.py"], start="test_nowhere")
    assert "no test here is 'test_nowhere'" in capsys.readouterr().out


def test_a_module_that_cannot_be_read_is_one_error(place: Path, tmp_path: Path) -> None:
    (place / "odd_test.py").write_text("import nothing_of_the_kind\n")
    results = begun(tmp_path / "kept")
    assert machine(place, results).run(["odd_test.py", "second_test.py::test_after"])
    assert outcomes(results) == [("odd_test.py", "error"), ("second_test.py::test_after", "passed")]
    assert "nothing_of_the_kind" in results.by_test["odd_test.py"].text


def test_a_machine_that_is_gone_ends_it_and_loses_nothing(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    way = tmp_path / "way"
    way.write_text(f'#!/bin/sh\n[ ! -e {tmp_path}/gone ] || exit 255\nexec bash -c "$@"\n')
    way.chmod(0o755)
    lethal = f"import os\n\ndef test_a(): pass\n\ndef test_b():\n    open('{tmp_path}/gone', 'w')\n    os._exit(1)\n"
    (place / "first_test.py").write_text(lethal)
    results = begun(tmp_path / "kept")
    assert not machine(place, results, via=(str(way),)).run(["first_test.py"])
    assert outcomes(results) == [("first_test.py::test_a", "passed")]
    assert "the machine is not reached; --from last goes on with it" in capsys.readouterr().out
    assert "not run:\n  first_test.py::test_b" in results.text()


def test_a_way_that_leads_nowhere_is_said(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = begun(tmp_path / "kept")
    assert not machine(place, results, via=("false",)).run(["first_test.py"])
    assert "pytest did not begin" in capsys.readouterr().out


def test_an_early_end_of_pytest_is_laid_to_a_test_so_that_the_next_run_gets_further() -> None:
    progress = Progress()
    plan = {"event": "plan", "tests": ["a", "b", "c"], "first": 1, "pid": 7}
    assert progress.left_by_death(1, now=0) is None
    progress.take(json.loads(json.dumps(plan)), now=0)
    progress.take({"event": "begun", "test": "b"}, now=1)
    assert progress.left_by_death(1, now=3) == Result("b", "died", 2.0, "pytest ended in it with exit code 1")
    ended = progress.take({"event": "ended", "test": "b", "outcome": "passed", "seconds": 1.0, "text": ""}, now=3)
    assert ended == Result("b", "passed", 1.0)
    assert progress.left_by_death(1, now=3) == Result("c", "died", 0.0, "pytest ended before it with exit code 1")


def test_slowness_is_the_worse_of_two_and_bounded() -> None:
    assert slowness_of([0.01, 0.01]) == 1.0
    assert slowness_of([0.9, 0.35]) == 10.0
    assert slowness_of([0.09, 7.0]) == 20.0
    assert slowness_of([1000.0, 1.0]) == 60.0


def test_the_command_keeps_files_and_says_by_its_status_what_came_of_it(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / ".venv/bin").mkdir(parents=True)
    python = place / ".venv/bin/python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    shared = ["--name", "v1", "--place", str(place), "--folder", str(tmp_path / "kept"), "--via", "bash -c"]
    assert main([*shared, "--from", "last", "second_test.py"]) == 2
    assert "has no result yet" in capsys.readouterr().err
    assert main([*shared, "second_test.py::test_after"]) == 0
    assert "times slower than ordinary" in capsys.readouterr().out
    (tmp_path / "kept/v1.jsonl").write_text('{"test": "second_test.py::test_deadly", "outcome": "died"}\n')
    assert (
        main([*shared, "--slowness", "1", "--from", "last", "second_test.py"]) == 1
    )  # what was wrong before is still known
    assert main([*shared, "--slowness", "1", "second_test.py::test_nothing"]) == 3
    assert (tmp_path / "kept/v1.txt").exists()
