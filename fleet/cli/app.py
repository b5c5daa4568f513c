"""What every command gets as its context object: the client for the chosen daemon, and the terminal."""

from __future__ import annotations

import dataclasses
import functools
import os
import stat
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar
from urllib.parse import quote

import click

from fleet import errors
from fleet.api.client import EngineClient, EngineError
from fleet.cli import clock

if TYPE_CHECKING:
    import ssl

__all__ = [
    "DEFAULT_HOST",
    "App",
    "TlsOptions",
    "default_host",
    "filters_of",
    "part",
    "pass_app",
    "read_input",
    "retry_conflicts",
]

R = TypeVar("R")

DEFAULT_HOST: Final = "unix:///run/fleet/fleet.sock"
_TOKEN_FILE_MAX: Final = 4096


def default_host(environment: Mapping[str, str], *, uid: int) -> str:
    """Where a daemon is looked for: a user's own, if its socket is there, else the host's."""
    runtime = environment.get("XDG_RUNTIME_DIR", "")
    own = Path(runtime) / "fleet" / "fleet.sock"
    return f"unix://{own}" if uid != 0 and runtime.startswith("/") and own.exists() else DEFAULT_HOST


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TlsOptions:
    """``--tls*`` as given; files are PEM."""

    enabled: bool = False
    verify: bool = False
    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None

    def context(self) -> ssl.SSLContext | None:
        """A client context, or None without TLS. Raises ``UserError`` for files that cannot be used."""
        if not (self.enabled or self.verify):
            return None
        import ssl

        try:
            context = ssl.create_default_context(cafile=self.ca_file)
            if not self.verify:
                context.check_hostname = False
                context.verify_mode = ssl.CERT_NONE
            if self.cert_file:
                context.load_cert_chain(self.cert_file, self.key_file)
        except (OSError, ValueError) as cause:
            files = ", ".join(filter(None, (self.ca_file, self.cert_file, self.key_file)))
            raise errors.UserError(f"cannot use the TLS files {files}: {cause}") from cause
        return context


class App:
    """One run of the command. ``environment`` is the process's, read once."""

    def __init__(
        self,
        *,
        host: str | None,
        tls: TlsOptions,
        environment: Mapping[str, str],
        context: str | None = None,
        token_file: str = "",
    ) -> None:
        self.environment = environment
        self.host_given = host or environment.get("FLEET_HOST") or environment.get("DOCKER_HOST")
        """The daemon that -H or the environment names, if one does."""
        self._context_flag = context
        self._tls = tls
        self._token_file = token_file
        self._chosen: tuple[str, TlsOptions] | None = None
        self._client: EngineClient | None = None

    def context_name(self) -> str:
        """The context in use, in Docker's order: --context, -H, the host's variables, the context's variables, the current one.

        Raises ``UserError`` when the file that tells the current one cannot be read.
        """
        from fleet.cli.context_store import DEFAULT, Contexts

        if self._context_flag:
            return self._context_flag
        if self.host_given:
            return DEFAULT
        named = self.environment.get("FLEET_CONTEXT") or self.environment.get("DOCKER_CONTEXT")
        return named or Contexts(self.environment).current()

    def _endpoint(self) -> tuple[str, TlsOptions]:
        """URL and TLS, settled at first use, so that commands without a daemon need no context that works."""
        if self._chosen is None:
            if self.host_given and not self._context_flag:  # the usual case in scripts: no file is looked at
                self._chosen = _url(self.host_given), self._tls
            else:
                self._chosen = self._of_context(self.context_name())
        return self._chosen

    def _of_context(self, name: str) -> tuple[str, TlsOptions]:
        from fleet.cli.context_store import DEFAULT, Contexts, check_host

        if name == DEFAULT:
            return _url(self.host_given or default_host(self.environment, uid=os.geteuid())), self._tls
        if self._tls != TlsOptions():
            raise errors.UserError(
                f"context {name} has TLS settings of its own; leave --tls... away, or name a daemon with -H"
            )
        found = Contexts(self.environment).get(name)
        files = {f"{part}_file": str(path) for part, path in found.tls.items()}
        tls = TlsOptions(
            enabled=bool(files) or found.skip_tls_verify,
            verify=bool(files) and not found.skip_tls_verify,
            **files,
        )
        return check_host(found.host or DEFAULT_HOST), tls

    @property
    def host(self) -> str:
        """URL of the daemon. Raises ``FleetError`` when the context that names it is missing or broken."""
        return self._endpoint()[0]

    @property
    def client(self) -> EngineClient:
        """The client, made at first use."""
        if self._client is None:
            self._client = self._make_client(60.0)
        return self._client

    def streaming_client(self, *, timeout_s: float | None = None) -> EngineClient:
        """A second client, by default without a time limit: for logs and events that may stay silent."""
        return self._make_client(timeout_s)

    def _make_client(self, timeout_s: float | None) -> EngineClient:
        url, tls = self._endpoint()
        return EngineClient(url, tls=tls.context(), timeout_s=timeout_s, token=self._token(url, tls))

    def _token(self, url: str, tls: TlsOptions) -> str:
        """What to show to the daemon there; nothing on a unix socket, whose callers are known. Raises ``UserError`` rather than
        show it where somebody else could read it."""
        if url.startswith("unix:"):
            return ""
        if self._token_file:
            token = _read_token(Path(self._token_file))
        else:
            token = self.environment.get("FLEET_TOKEN", "").strip()
            if token and len(token.split()) > 1:
                raise errors.UserError("FLEET_TOKEN: expected one token and nothing else")
        is_verified = tls.verify or (url.startswith("https:") and not tls.enabled)
        if token and not is_verified:
            raise errors.UserError(
                f"{url}: a token is shown only over TLS to a daemon whose certificate is verified: "
                "add --tlsverify, and --tlscacert FILE for an authority of your own"
            )
        return token

    def close(self) -> None:
        """Close the connection, and say it when what was shown may be old; idempotent."""
        if self._client is not None:
            if self._client.stale_s is not None:
                click.echo(
                    f"WARNING: the managers have no majority; this is what was known {self._client.stale_s} s ago",
                    err=True,
                )
            self._client.close()
            self._client = None

    # Small conveniences that most commands share.

    def info(self) -> dict[str, Any]:
        """``GET /info``."""
        found: dict[str, Any] = self.client.get("/info")
        return found

    def node_reference(self, name: str) -> str:
        """``self`` as the id of the node this daemon is; other names as they are."""
        if name != "self":
            return name
        node_id = (self.info().get("Swarm") or {}).get("NodeID")
        if not node_id:
            raise errors.UserError("'self' names no node, because this host is not part of a swarm")
        return str(node_id)


def _url(host: str) -> str:
    return host if "://" in host else f"tcp://{host}"


def _read_token(path: Path) -> str:
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            text = file.read(_TOKEN_FILE_MAX + 1).decode("ascii").strip()
    except OSError as cause:
        raise errors.UserError(f"token file {path}: {cause.strerror or cause}") from cause
    except UnicodeDecodeError as cause:
        raise errors.UserError(f"token file {path}: that is not a token") from cause
    if not text or len(text) > _TOKEN_FILE_MAX or len(text.split()) > 1:
        raise errors.UserError(f"token file {path}: expected one token and nothing else")
    if mode & stat.S_IROTH:
        click.echo(f"WARNING: every user of this machine can read the token in {path}: chmod 600", err=True)
    return text


def pass_app(command: Callable[..., R]) -> Callable[..., R]:
    """Hands the ``App`` to a command as its first argument."""

    @functools.wraps(command)
    def with_app(*args: Any, **kwargs: Any) -> R:
        app = click.get_current_context().find_object(App)
        assert app is not None, "the root command puts the App there"
        return command(app, *args, **kwargs)

    return with_app


CONFLICT_TRIES: Final = 6
CONFLICT_WAIT_S: Final = 0.05


def retry_conflicts(attempt: Callable[[], R]) -> R:
    """``attempt()``, again when the object changed between its read and its write.

    The cluster itself writes to objects (update status, addresses), so a conflict need not be another person. ``attempt``
    must read what it changes each time it is called. Raises the last ``EngineError`` after ``CONFLICT_TRIES``.
    """
    for tries_left in reversed(range(CONFLICT_TRIES)):
        try:
            return attempt()
        except EngineError as cause:
            if "out of sequence" not in str(cause) or not tries_left:
                raise
            clock.sleep(CONFLICT_WAIT_S)
    raise AssertionError("the last attempt returns or raises")


def part(name: str) -> str:
    """``name`` as a part of a URL's path. Image names keep their slashes. Raises ``UserError`` for the empty name."""
    if not name.strip():
        raise errors.UserError("an empty name was given; expected a name or an ID")
    return quote(name, safe="/:@")


def read_input(path: str, *, size_max: int) -> bytes:
    """A file, or standard input for ``-``. Raises ``UserError`` when it cannot be read or is larger than allowed."""
    try:
        if path == "-":
            data = sys.stdin.buffer.read(size_max + 1)
        else:
            with Path(path).open("rb") as file:
                data = file.read(size_max + 1)
    except OSError as cause:
        raise errors.UserError(f"cannot read {path}: {cause.strerror or cause}") from cause
    if len(data) > size_max:
        raise errors.TooLargeError(f"{path} is larger than the {size_max} bytes allowed")
    return data


def filters_of(pairs: tuple[str, ...]) -> dict[str, list[str]] | None:
    """``--filter key=value ...`` as the API's filters. Raises ``UserError`` for text without ``=``."""
    if not pairs:
        return None
    filters: dict[str, list[str]] = {}
    for pair in pairs:
        key, separator, value = pair.partition("=")
        if not separator or not key:
            raise errors.UserError(f"--filter {pair!r} is not a filter; expected NAME=VALUE")
        filters.setdefault(key.strip().lower(), []).append(value)
    return filters
