"""Variables: the rules of the Compose specification's "Interpolation" section."""

from __future__ import annotations

import pytest

from fleet import errors
from fleet.compose.interpolate import interpolate

ENV = {"SET": "value", "EMPTY": "", "OTHER": "o"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain", "plain"),
        ("$SET", "value"),
        ("${SET}", "value"),
        ("a${SET}b$OTHER.c", "avaluebo.c"),
        ("${UNSET}", ""),
        ("${UNSET:-d}", "d"),
        ("${EMPTY:-d}", "d"),
        ("${EMPTY-d}", ""),
        ("${UNSET-d}", "d"),
        ("${SET:-d}", "value"),
        ("${SET:+r}", "r"),
        ("${EMPTY:+r}", ""),
        ("${EMPTY+r}", "r"),
        ("${UNSET+r}", ""),
        ("${SET:?needed}", "value"),
        ("${EMPTY?needed}", ""),
        ("$$SET and $${SET}", "$SET and ${SET}"),
        ("${UNSET:-${OTHER}-x}", "o-x"),
        ("${UNSET:-${UNSET2:-$SET}}", "value"),
        ("${UNSET:-a:b/c}", "a:b/c"),
        ("${UNSET:-$$}", "$"),
        ("${SET:-${UNSET:?not evaluated}}", "value"),
    ],
)
def test_variable_is_replaced(text: str, expected: str) -> None:
    assert interpolate(text, ENV) == expected


@pytest.mark.parametrize("text", ["${", "$", "${SET", "${SET:", "${1}", "$ x", "${SET:-a", "${}", "${SET!x}", "a$-"])
def test_text_that_is_no_variable_is_refused_with_a_hint(text: str) -> None:
    with pytest.raises(errors.UserError, match=r"\$\$"):
        interpolate(text, ENV)


@pytest.mark.parametrize(
    ("text", "message"),
    [("${UNSET:?set it}", "set it"), ("${EMPTY:?}", "not set"), ("${UNSET?${OTHER}}", ": o")],
)
def test_required_variable_names_itself_and_the_message(text: str, message: str) -> None:
    with pytest.raises(errors.UserError, match=f"(UNSET|EMPTY) is required.*{message}"):
        interpolate(text, ENV)


def test_unset_variables_without_default_are_reported() -> None:
    unset: list[str] = []
    interpolate("$A ${B} ${C:-c} ${SET:-$D}", ENV, on_unset=unset.append)
    assert unset == ["A", "B"]


def test_nesting_is_bounded() -> None:
    with pytest.raises(errors.UserError, match="nested deeper"):
        interpolate("${X:-" * 50 + "}" * 50, {})
