"""Image names, parsed and completed the way Docker does.

Grammar and completion rules are those of github.com/distribution/reference (v0.6): ``busybox`` means
``docker.io/library/busybox:latest``, a first component is a registry only if it holds a dot, a colon or an upper-case
letter, or is ``localhost``. Only sha256 digests are accepted: nothing else is in use, and every byte is checked
against them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from fleet.errors import UserError

__all__ = ["Reference", "parse_reference", "is_digest", "check_digest", "DEFAULT_TAG"]

DEFAULT_TAG = "latest"
_DEFAULT_DOMAIN = "docker.io"
_OFFICIAL_PREFIX = "library/"
_NAME_LENGTH_MAX = 255  # distribution/reference: repository name, without the registry's tag or digest
_TEXT_LENGTH_MAX = 1024

_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_PATH = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*", re.ASCII)
_DOMAIN_LABEL = r"(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])"
_DOMAIN = re.compile(rf"(?:{_DOMAIN_LABEL}(?:\.{_DOMAIN_LABEL})*|\[[a-fA-F0-9:]+\])(?::[0-9]{{1,5}})?", re.ASCII)
_TAG = re.compile(r"[\w][\w.-]{0,127}", re.ASCII)
_DIGEST = re.compile(r"sha256:[a-f0-9]{64}", re.ASCII)
_ID = re.compile(r"[a-f0-9]{64}", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """A complete image name: registry, repository and a tag, a digest or both."""

    domain: str
    path: str
    tag: str | None = None
    digest: str | None = None

    @property
    def name(self) -> str:
        """Registry and repository, without tag and digest: ``docker.io/library/busybox``."""
        return f"{self.domain}/{self.path}"

    @property
    def familiar_name(self) -> str:
        """The name as people write it: ``busybox``, ``team/app``, ``registry.example:5000/app``."""
        if self.domain != _DEFAULT_DOMAIN:
            return self.name
        short = self.path.removeprefix(_OFFICIAL_PREFIX)
        return self.path if "/" in short else short

    @property
    def familiar(self) -> str:
        """The familiar name with tag and digest, as tools print it."""
        return self.familiar_name + self._suffix

    @property
    def _suffix(self) -> str:
        return (f":{self.tag}" if self.tag else "") + (f"@{self.digest}" if self.digest else "")

    def with_digest(self, digest: str) -> Reference:
        """The same repository at exactly one digest, without tag."""
        return replace(self, tag=None, digest=check_digest(digest))

    def __str__(self) -> str:
        return self.name + self._suffix


def parse_reference(text: str) -> Reference:
    """Parse and complete an image name; without tag and digest the tag is ``latest``.

    Raises ``UserError`` naming the part that is wrong. The text begins ``invalid reference format``, which Docker's
    clients know.
    """
    if not text or len(text) > _TEXT_LENGTH_MAX:
        raise _invalid(text[:80], "it is empty" if not text else f"longer than {_TEXT_LENGTH_MAX} characters")
    if _ID.fullmatch(text):
        raise _invalid(text, "64 hexadecimal characters are an image id, not a name")
    rest, at, digest = text.partition("@")
    if at and not _DIGEST.fullmatch(digest):
        raise _invalid(text, f"{digest!r} is not a digest (sha256: and 64 hexadecimal characters)")
    last = rest.rsplit("/", 1)[-1]
    tag: str | None = None
    if ":" in last:
        rest, _, tag = rest.rpartition(":")
        if not _TAG.fullmatch(tag):
            raise _invalid(text, f"{tag!r} is not a tag (letters, digits, _ . -, at most 128)")
    domain, path = _split_domain(rest)
    if not _DOMAIN.fullmatch(domain):
        raise _invalid(text, f"{domain!r} is not a registry (host or host:port)")
    if path != path.lower():
        raise _invalid(text, f"repository name ({path}) must be lowercase")
    if not _PATH.fullmatch(path):
        raise _invalid(text, f"{path!r} is not a repository name")
    if len(domain) + 1 + len(path) > _NAME_LENGTH_MAX:
        raise _invalid(text, f"repository name must not be more than {_NAME_LENGTH_MAX} characters")
    if not tag and not digest:
        tag = DEFAULT_TAG
    return Reference(domain=domain, path=path, tag=tag or None, digest=digest or None)


def is_digest(text: str) -> bool:
    """Whether ``text`` is a complete sha256 digest."""
    return _DIGEST.fullmatch(text) is not None


def check_digest(text: str) -> str:
    """The digest itself, or ``UserError``; guards every place where a digest becomes a file name."""
    if not is_digest(text):
        raise UserError(f"invalid digest {text[:100]!r}: expected sha256: and 64 lower-case hexadecimal characters")
    return text


def _split_domain(name: str) -> tuple[str, str]:
    first, slash, rest = name.partition("/")
    looks_like_host = any(sign in first for sign in ".:[") or first == "localhost" or first != first.lower()
    if not slash or not looks_like_host:
        domain, path = _DEFAULT_DOMAIN, name
    else:
        domain, path = first, rest
    if domain == "index.docker.io":
        domain = _DEFAULT_DOMAIN
    if domain == _DEFAULT_DOMAIN and "/" not in path:
        path = _OFFICIAL_PREFIX + path
    return domain, path


def _invalid(text: str, why: str) -> UserError:
    return UserError(f"invalid reference format: {text!r}: {why}")
