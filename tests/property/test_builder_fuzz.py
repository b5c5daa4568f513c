"""Whatever is sent as a Dockerfile: a value, or a sentence with the line."""

from __future__ import annotations

import contextlib

from hypothesis import given
from hypothesis import strategies as st

from fleet.builder.dockerfile import expand, parse_dockerfile, split_words
from fleet.builder.ignore import parse_ignore
from fleet.errors import UserError

PIECES = st.sampled_from(
    [
        "FROM a",
        "RUN ",
        "<<E",
        "E",
        "\n",
        "\\\n",
        "#",
        "escape=`",
        "COPY --from=x ",
        '["a"]',
        "${a:-",
        "}",
        "'",
        '"',
        " ",
    ]
)


@given(st.one_of(st.binary(max_size=300), st.lists(PIECES, max_size=30).map(lambda p: "".join(p).encode())))
def test_a_dockerfile_is_read_or_refused(data: bytes) -> None:
    lines = data.count(b"\n") + 1
    with contextlib.suppress(UserError):
        found = parse_dockerfile(data)
        numbers = [instruction.line for instruction in found]
        assert numbers == sorted(numbers) and numbers[0] >= 1 and numbers[-1] <= lines
    with contextlib.suppress(UserError):
        parse_ignore(data).excludes("a/b")


@given(st.one_of(st.text(max_size=100), st.lists(PIECES, max_size=30).map("".join)))
def test_words_are_expanded_or_refused(text: str) -> None:
    for call in (expand, split_words):
        with contextlib.suppress(UserError):
            call(text, {"a": "1"})


@given(st.text(alphabet="abc/._-", max_size=40))
def test_plain_text_expands_to_itself(text: str) -> None:
    assert expand(text, {}) == text
