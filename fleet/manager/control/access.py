"""Users and their tokens: create, list, change, remove; and whose a token is."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

import msgspec

from fleet import errors
from fleet.identity.api_tokens import API_SECRET_BYTES, make_api_token, parse_api_token, secret_digest, secret_matches
from fleet.logs import get_logger
from fleet.manager.control.context import Context, required_version
from fleet.manager.control.service_spec import check_labels
from fleet.model.access import AccessRole, Token, User, UserSpec
from fleet.model.common import SECOND_NS
from fleet.model.ids import TokenId, UserId
from fleet.model.wire import Value
from fleet.store import Transaction

__all__ = ["MadeToken", "TokenControl", "TokenWish", "UserControl"]

log = get_logger("access")

_NAME: Final = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9@._-]{0,63}")
_USERS_MAX: Final = 10_000
_TOKENS_MAX: Final = 100
_SELECTORS_MAX: Final = 32
_DESCRIPTION_MAX: Final = 256
_EXPIRES_MIN_NS: Final = SECOND_NS
_EXPIRES_MAX_NS: Final = 100 * 365 * 86_400 * SECOND_NS
_USE_NOTED_EVERY: Final = timedelta(minutes=5)
"""A token in use is written about this often, whatever the number of requests."""

_REFUSED: Final = "the token is not valid: it is of no user, was removed, or is not copied whole"
_ANYTHING: Final = secret_digest("")


class TokenWish(Value, frozen=True, kw_only=True):
    """``POST /fleet/v1/tokens/create``. ``user``: name or id; ``expires_in_ns``: 0 for never."""

    user: str = ""
    description: str = ""
    expires_in_ns: int = 0


@dataclass(frozen=True, slots=True)
class MadeToken:
    """A new token and its text, which nobody can be shown again."""

    token: Token
    text: str

    def __repr__(self) -> str:
        return f"MadeToken({self.token.id})"


class UserControl:
    """See the module."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._store = context.store

    def find(self, text: str) -> User:
        """By id, name or unique prefix of the id."""
        return self._store.users.find(text)

    def named(self, name: str) -> User | None:
        """The user of exactly that name; a removed one too, because a certificate in its name must not become worth more."""
        found = self._store.users.by_name(name)
        return found or next(
            (user for user in self._store.users.all() if user.removed and user.spec.name == name), None
        )

    def list(self) -> list[User]:
        """Those that are not removed, by name."""
        return sorted((user for user in self._store.users.all() if not user.removed), key=lambda user: user.spec.name)

    async def create(self, spec: UserSpec) -> User:
        """Raises ``UserError``, ``ConflictError`` (name taken)."""
        _check(spec)
        if len(self._store.users) >= _USERS_MAX:
            raise errors.UserError(f"there are {_USERS_MAX} users, removed ones included: no more are kept")
        now = self._context.now()
        user = User(id=UserId(self._context.new_id()), created_at=now, updated_at=now, spec=spec)
        tx = Transaction().create(user)
        for other in self._store.users.all():
            if other.removed and other.spec.name == spec.name:
                tx.delete(other)
        await self._store.commit(tx)
        return self.find(user.id)

    async def update(self, text: str, spec: UserSpec, *, version: int | None) -> User:
        """Everything but the name. Raises ``UserError``, ``OutOfSequenceError``."""
        read_at = required_version(version, what="user")
        user = self.find(text)
        if spec.name and spec.name != user.spec.name:
            raise errors.UnsupportedError("renaming users is not supported: create another and remove this one")
        spec = msgspec.structs.replace(spec, name=user.spec.name)
        _check(spec)
        changed = msgspec.structs.replace(user, spec=spec, version=read_at, updated_at=self._context.now())
        await self._store.commit(Transaction().replace(changed))
        return self.find(user.id)

    async def remove(self, text: str) -> None:
        """With all its tokens. Raises ``NotFoundError``."""
        found = self.find(text)

        def attempt() -> Transaction:
            user = self.find(found.id)
            tx = Transaction().replace(msgspec.structs.replace(user, removed=True, updated_at=self._context.now()))
            for token in self._store.tokens.all():
                if token.user_id == user.id:
                    tx.delete(token)
            return tx

        await self._context.guarded(attempt)


class TokenControl:
    """See the module."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._store = context.store
        self._noting: set[TokenId] = set()

    def find(self, text: str) -> Token:
        """By id or unique prefix of it."""
        return self._store.tokens.find(text)

    def get(self, id_: TokenId) -> Token | None:
        """By its full id."""
        return self._store.tokens.get(id_)

    def list(self, user: str = "") -> list[Token]:
        """All, or those of one user (name or id; raises ``NotFoundError``); oldest first."""
        wanted = self._store.users.find(user).id if user else None
        found = [token for token in self._store.tokens.all() if wanted in (None, token.user_id)]
        return sorted(found, key=lambda token: (token.created_at, token.id))

    async def create(self, wish: TokenWish) -> MadeToken:
        """Raises ``UserError``, ``NotFoundError`` (no such user)."""
        if not wish.user:
            raise errors.UserError("token: the user that it is for must be given")
        if len(wish.description) > _DESCRIPTION_MAX:
            raise errors.UserError(f"token: the description is longer than {_DESCRIPTION_MAX} characters")
        if wish.expires_in_ns and not _EXPIRES_MIN_NS <= wish.expires_in_ns <= _EXPIRES_MAX_NS:
            raise errors.UserError("token: it can expire in between a second and 100 years, or never (0)")
        id_, now = TokenId(self._context.new_id()), self._context.now()
        text = make_api_token(id_, self._context.entropy(API_SECRET_BYTES))
        lasts = timedelta(seconds=wish.expires_in_ns / SECOND_NS)

        def attempt() -> Transaction:
            user = self._store.users.find(wish.user)
            if sum(token.user_id == user.id for token in self._store.tokens.all()) >= _TOKENS_MAX:
                raise errors.UserError(f"user {user.spec.name} has {_TOKENS_MAX} tokens already: remove some")
            token = Token(
                id=id_,
                created_at=now,
                user_id=user.id,
                digest=secret_digest(parse_api_token(text).secret),
                description=wish.description,
                expires_at=now + lasts if wish.expires_in_ns else None,
            )
            return Transaction().require(user).create(token)

        await self._context.guarded(attempt)
        return MadeToken(self.find(id_), text)

    async def remove(self, text: str) -> None:
        """From this moment on it is worth nothing. Raises ``NotFoundError``."""
        found = self.find(text)

        def attempt() -> Transaction:
            return Transaction().delete(self.find(found.id))

        await self._context.guarded(attempt)

    def owner(self, text: str) -> tuple[User, Token]:
        """Whose token it is. Raises ``UnauthorizedError`` for one that is unknown, expired, or of a user who is disabled."""
        shown = parse_api_token(text)
        token = self._store.tokens.get(shown.id)
        is_right = secret_matches(shown.secret, token.digest if token is not None else _ANYTHING)
        if token is None or not is_right:
            raise errors.UnauthorizedError(_REFUSED)
        return self.check(token), token

    def check(self, token: Token) -> User:
        """Whose token it is, if it is worth anything now. Raises ``UnauthorizedError``."""
        user = self._store.users.get(token.user_id)
        if user is None or user.removed:
            raise errors.UnauthorizedError(_REFUSED)
        if token.is_expired(self._context.now()):
            raise errors.UnauthorizedError(f"token {token.id} has expired; ask an administrator for another")
        if user.spec.disabled:
            raise errors.UnauthorizedError(f"user {user.spec.name} is disabled; ask an administrator")
        return user

    def is_use_due(self, token: Token) -> bool:
        """Whether ``note_use`` would write."""
        return token.id not in self._noting and _is_worth_noting(token, self._context.now())

    async def note_use(self, token: Token) -> None:
        """Write that it is in use, unless that was written lately. A write that fails is not tried again: the next use does."""
        if not self.is_use_due(token):
            return
        now = self._context.now()
        self._noting.add(token.id)
        try:
            present = self._store.tokens.get(token.id)
            if present is not None and _is_worth_noting(present, now):
                await self._store.commit(Transaction().replace(msgspec.structs.replace(present, last_used_at=now)))
        except errors.FleetError as cause:  # removed meanwhile, noted by another manager, or nobody can write now
            log.debug("use of a token not noted", token=token.id, cause=str(cause))
        finally:
            self._noting.discard(token.id)


def _is_worth_noting(token: Token, now: datetime) -> bool:
    return token.last_used_at is None or now - token.last_used_at >= _USE_NOTED_EVERY


def _check(spec: UserSpec) -> None:
    if not _NAME.fullmatch(spec.name):
        raise errors.UserError(
            f"invalid user name {spec.name[:80]!r}: 1 to 64 of [a-zA-Z0-9@._-], beginning with a letter or digit"
        )
    if len(spec.description) > _DESCRIPTION_MAX:
        raise errors.UserError(f"user {spec.name}: the description is longer than {_DESCRIPTION_MAX} characters")
    if len(spec.scope) > _SELECTORS_MAX:
        raise errors.UserError(f"user {spec.name}: more than {_SELECTORS_MAX} selectors")
    for selector in spec.scope:
        if not selector:
            raise errors.UserError(f"user {spec.name}: a selector without labels selects nothing")
        check_labels(selector, what=f"user {spec.name}")
        if not all(selector.values()):
            raise errors.UserError(f"user {spec.name}: a selector needs a value for each label")
    if spec.scope and spec.role is AccessRole.ADMIN:
        raise errors.UserError(f"user {spec.name}: an admin may do everything and cannot be limited to some objects")
    if spec.host_access and spec.role is not AccessRole.OPERATOR:
        raise errors.UserError(
            f"user {spec.name}: host access is for operators; an admin has it, a viewer runs nothing"
        )
