"""``fleet image build`` is ``fleet build``."""

from __future__ import annotations

from click import Context

from fleet.cli.build import build
from fleet.cli.image import image


def test_image_build_is_build() -> None:
    context = Context(image)
    assert image.get_command(context, "build") is build
    assert "build" in image.list_commands(context) and "prune" in image.list_commands(context)
