"""Names for containers nobody named: two words that are easy to say on the telephone."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Container
from typing import Final

__all__ = ["new_container_id", "new_volume_name", "pick_name"]

_ADJECTIVES: Final = (  # noqa: SIM905 - words read better as text
    "agile amber ample ancient apt azure bold brave breezy brisk bright calm candid careful chilly civil "
    "clear clever cosy crisp curious dapper daring deft eager early earnest easy elegant fabled fair "
    "famous fancy fleet fluent fond frank free fresh frosty gentle giant glad golden graceful grand handy "
    "happy hardy hearty honest humble ideal jaunty jolly jovial keen kind lively loyal lucid lucky mellow "
    "merry mighty modest neat nimble noble patient placid plucky polite prime proud quick quiet radiant "
    "rapid ready robust royal rustic serene sharp silent simple sleek smart snappy snug sober solid spry "
    "stable steady stoic sturdy sunny swift tidy tranquil trusty upbeat vivid warm wise witty "
).split()

_NOUNS: Final = (  # noqa: SIM905 - words read better as text
    "anchor atlas barge beacon bight boom bosun bow bowline brig brine buoy cabin canal canoe capstan "
    "captain cargo chart clipper coast compass coral corsair cove crane crew current cutter davit deck "
    "delta derrick dinghy dock dory dune ebb eddy ensign estuary ferry fjord flag flotilla fluke foghorn "
    "frigate galley gangway gull gunwale halyard harbour hatch haven hawser helm hull inlet island "
    "isthmus jetty jib kayak keel ketch knot lagoon lantern launch lighthouse locker lugger mainsail "
    "marina mast mooring oar packet pier pilot pinnace porthole port prow punt quay raft reef rigging "
    "rudder sail schooner sextant shoal skiff sloop sound spar spinnaker squall steamer stern strait "
    "swell tanker tender tide tiller trawler tug voyage wake wharf winch yacht yawl "
).split()

_TRIES: Final = 8


def new_container_id() -> str:
    """64 hexadecimal digits, as Docker's; never all digits in the first 12, which some tools read as a number."""
    while True:
        candidate = secrets.token_hex(32)
        if not candidate[:12].isdigit():
            return candidate


def new_volume_name() -> str:
    """The name of an anonymous volume: 64 hexadecimal digits."""
    return secrets.token_hex(32)


def pick_name(taken: Container[str], *, choose: Callable[[int], int] = secrets.randbelow) -> str:
    """``adjective_noun`` that is not in ``taken``; a number follows when that is hard to find. ``choose(n)`` gives 0..n-1."""
    for attempt in range(_TRIES):
        name = f"{_ADJECTIVES[choose(len(_ADJECTIVES))]}_{_NOUNS[choose(len(_NOUNS))]}"
        if attempt:
            name += str(choose(10 ** min(attempt, 6)))
        if name not in taken:
            return name
    return new_container_id()[:12]
