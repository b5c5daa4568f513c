"""How the output of a validation program is judged."""

from __future__ import annotations

import pytest

from bench.oci_conformance import judge


@pytest.mark.parametrize(
    ("output", "status", "passed", "why"),
    [
        ("TAP version 13\nok 1 - a\nok 2 - b\n1..2\n", 0, True, ()),
        ("ok 1 - a\nnot ok 2 - b\n1..2\n", 0, False, ("2 - b",)),
        ("ok 1 - a\nnot ok 2 - b # TODO later\n1..1\n", 0, True, ()),
        ("ok 1 - a\n1..2\n", 0, False, ("1 assertions of 2",)),
        ("ok 1 - a\n", 0, False, ("1 assertions of an unknown number",)),
        ("ok 1 - a\n1..1\n", 1, False, ("exit status 1",)),
        ("ok 1 - a\n1..1\n", None, False, ("it did not end",)),
        ("", 0, True, ()),
        ('---\n{\n  "error": "hooks MUST"\n}\n1..0\n', 0, False, ("hooks MUST",)),
    ],
)
def test_a_program_is_judged_by_all_it_says(
    output: str, status: int | None, passed: bool, why: tuple[str, ...]
) -> None:
    verdict = judge(output, status)
    assert (verdict.passed, verdict.bad) == (passed, why)
