"""Manual pages: one for each command, saying what --help says, in a form that the readers of manual pages accept."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import click
import pytest

from fleet.cli.main import cli
from fleet.cli.man import page, tree
from tests.support.terminal import Terminal


def root() -> click.Context:
    return click.Context(cli, info_name="fleet")


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from fleet.cli.main import run

    folder = tmp_path_factory.mktemp("man") / "man1"
    assert run(["man", "--output", str(folder)], {}) == 0
    return folder


def test_each_command_has_a_page_and_no_page_is_of_none(pages: Path) -> None:
    expected = {f"{ctx.command_path.replace(' ', '-')}.1" for ctx in tree(root())}
    assert {path.name for path in pages.iterdir()} == expected
    assert {"fleet.1", "fleet-service-create.1", "fleet-context-import.1", "fleet-top.1", "fleet-run.1"} <= expected
    assert len(expected) > 100


def test_each_page_says_what_help_says(pages: Path) -> None:
    for ctx in tree(root()):
        text = (pages / f"{ctx.command_path.replace(' ', '-')}.1").read_text()
        plain = text.replace("\\-", "-").replace("\\&", "").replace("\\e", "\\")
        for param in ctx.command.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None:
                assert f".TP\n\\fB{record[0]}\\fR\n" in plain, (ctx.command_path, record)
        if isinstance(ctx.command, click.Group):
            for name in ctx.command.list_commands(ctx):
                command = ctx.command.get_command(ctx, name)
                assert command is not None
                assert command.hidden or f"\\fB{ctx.command_path.replace(' ', '-')}-{name}\\fR(1)" in plain


def test_text_cannot_be_a_request_of_roff() -> None:
    command = click.Command("x", help=".so /etc/passwd\n\n'\\n(.x and -- \\*(xx")
    text = page(click.Context(command, info_name="x"))
    assert "\\&.so /etc/passwd" in text
    assert "\\&'\\en(.x and \\-\\- \\e*(xx" in text
    assert not [line for line in text.splitlines() if line.startswith((".so", "'"))]


@pytest.mark.parametrize(
    "reader",
    [
        pytest.param(("man", "--warnings", "-l", "-E", "UTF-8"), id="man"),
        pytest.param(("groff", "-man", "-ww", "-z", "-K", "utf8"), id="groff"),
        pytest.param(("mandoc", "-T", "lint", "-W", "warning"), id="mandoc"),
    ],
)
def test_readers_of_manual_pages_have_nothing_to_complain_of(pages: Path, reader: tuple[str, ...]) -> None:
    if shutil.which(reader[0]) is None:
        pytest.skip(f"not run: {reader[0]} is not installed")
    paths = sorted(str(path) for path in pages.iterdir())
    environment = {**os.environ, "MANWIDTH": "80", "LC_ALL": "C.UTF-8", "MANPAGER": "cat"}
    chunks = [paths[i : i + 50] for i in range(0, len(paths), 50)] if reader[0] != "man" else [[p] for p in paths[::20]]
    for chunk in chunks:
        ran = subprocess.run(
            [*reader, *chunk], capture_output=True, text=True, env=environment, timeout=120, check=False
        )
        said = [line for line in ran.stderr.splitlines() if line.strip()]
        if reader[0] == "mandoc":  # pages carry no date on purpose
            said = [line for line in ran.stdout.splitlines() if "missing date" not in line]
        else:
            assert ran.returncode == 0, ran.stderr
        assert said == []
    if reader[0] == "man":
        ran = subprocess.run(
            ["man", "-l", str(pages / "fleet-service-create.1")],
            capture_output=True, text=True, env=environment, timeout=120, check=True,
        )  # fmt: skip
        assert "FLEET-SERVICE-CREATE(1)" in ran.stdout
        assert "--replicas" in ran.stdout


def test_page_goes_to_standard_output_when_piped(fleet: Any) -> None:
    ran = fleet("man", "service", "create")
    assert (ran.code, ran.out.splitlines()[0].startswith('.TH "FLEET\\-SERVICE\\-CREATE" 1')) == (0, True)
    assert fleet("man").out.startswith('.TH "FLEET" 1')


def test_page_is_shown_on_a_terminal() -> None:
    if shutil.which("man") is None:
        pytest.skip("not run: man is not installed")
    with Terminal("man", "service", environment={"MANPAGER": "cat", "LC_ALL": "C.UTF-8"}) as term:
        assert term.end() == 0
        assert b"SYNOPSIS" in re.sub(rb".\x08", b"", term.output)  # bold is written twice
        assert b".SH" not in term.output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("man", "servce"), "'fleet servce' is not a command"),
        (("man", "service", "create", "x"), "'fleet service create x' is not a command"),
        (("man", "--output", "/dev/null/x"), "cannot write manual pages to /dev/null/x"),
        (("man", "--output", "/tmp", "service"), "leave COMMAND away"),
    ],
)
def test_wrong_use_is_one_sentence(fleet: Any, arguments: tuple[str, ...], words: str) -> None:
    ran = fleet(*arguments)
    assert ran.code == 2
    assert words in ran.err.splitlines()[0]
