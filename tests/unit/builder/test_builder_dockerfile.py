"""Dockerfiles and .dockerignore as values."""

from __future__ import annotations

import pytest

from fleet.builder.dockerfile import expand, parse_dockerfile, split_words
from fleet.builder.ignore import parse_ignore
from fleet.errors import UserError


def test_continuations_comments_heredocs_and_flags_keep_their_lines() -> None:
    text = b"""# escape=`
ARG V=1
FROM --platform=linux/amd64 busybox AS base
RUN echo a `
# between

  b
run <<EOF
one
EOF
COPY --from=base --chown=1:2 <<'A' /x
$raw
A
CMD ["a", "b"]
"""
    found = parse_dockerfile(text)
    assert [(i.line, i.name) for i in found] == [
        (2, "ARG"),
        (3, "FROM"),
        (4, "RUN"),
        (8, "RUN"),
        (11, "COPY"),
        (14, "CMD"),
    ]
    assert found[1].flags == (("platform", "linux/amd64"),) and found[1].text == "busybox AS base"
    assert found[2].text.split() == ["echo", "a", "b"]
    assert found[3].heredocs[0].text == "one\n" and found[4].heredocs[0].literal
    assert found[5].words == ("a", "b")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"FROM a\nNOPE x", "line 2: unknown instruction: NOPE"),
        (b"RUN x", "line 1: RUN: no build stage"),
        (b"FROM a\nRUN <<E\nx", "line 2: RUN: the heredoc E does not end"),
        (b"", "empty"),
        (b"# escape=x\nFROM a", "line 1: escape"),
        (b"FROM a\n\xff", "line 2: not UTF-8"),
    ],
)
def test_errors_name_the_line(text: bytes, words: str) -> None:
    with pytest.raises(UserError, match=words):
        parse_dockerfile(text)


def test_variables_expand_as_in_docker() -> None:
    env = {"a": "1", "e": ""}
    assert expand("$a ${a} ${x:-d$a} ${e:-y} ${e-y} ${a:+z} ${x:+z} '$a' \"$a\" \\$a", env) == "1 1 d1 y  z  $a 1 $a"
    assert split_words('A="b c" d\\ e ${a}f', env) == ["A=b c", "d e", "1f"]
    with pytest.raises(UserError, match="not closed"):
        expand("${a", env)


def test_dockerignore_last_rule_decides_and_parents_count() -> None:
    rules = parse_ignore(b"# c\n*.log\n!keep.log\n**/tmp\nsrc/*\n!src/main.c\n")
    assert rules.excludes("a.log") and not rules.excludes("keep.log") and not rules.excludes("d/a.log")
    assert rules.excludes("x/y/tmp/z") and rules.excludes("tmp")
    assert rules.excludes("src/other.c") and not rules.excludes("src/main.c")
