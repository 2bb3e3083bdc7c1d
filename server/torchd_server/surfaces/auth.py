"""Who may call what: each endpoint declares its access, and a guard decides about each call."""

from __future__ import annotations

import enum
import hashlib
import hmac
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from torchd_server import errors
from torchd_server.settings import ServerSettings

logger = logging.getLogger(__name__)

_BEARER = re.compile(r"[Bb][Ee][Aa][Rr][Ee][Rr]\s+(\S+)\s*")
# Wrong tokens answered one by one; above it they are told to come later. Nobody who knows a token is counted.
WRONG_BURST = 100
WRONG_PER_SECOND = 10.0


class Access(enum.Enum):
    """What a caller must show."""

    OPEN = "open"
    INFERENCE = "inference"
    MANAGEMENT = "management"
    # The API key, by which the other two are renewed.
    ADMIN = "admin"


class Guard(Protocol):
    """Decides about one call."""

    def check(self, access: Access, authorization: Sequence[str]) -> None:
        """Raises Unauthorized unless one of the `authorization` values opens this access."""


class OpenDoor:
    """Lets everybody in: tokens are switched off."""

    def check(self, access: Access, authorization: Sequence[str]) -> None:
        """Never raises."""


def metrics_access(settings: ServerSettings) -> Access:
    """What `/metrics` asks for: nothing on loopback (E03), and nothing where TorchServe asked for nothing."""
    is_open = settings.posture.name == "torchserve" or settings.listeners.metrics.is_loopback
    return Access.OPEN if is_open else Access.INFERENCE


@dataclass(frozen=True, slots=True)
class Key:
    """A token that is good until `deadline` (None: for ever); only its hash is kept where calls are compared."""

    digest: bytes
    deadline: float | None = None

    @classmethod
    def of(cls, token: str, deadline: float | None = None) -> Key:
        """The key of a token."""
        return cls(digest_of(token), deadline)


def digest_of(token: str) -> bytes:
    """What is compared instead of the token: of one length, and of no use to who reads it."""
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()


Keys = Mapping[Access, Sequence[Key]]


class TokenGuard:
    """Compares what a caller shows with the keys there are now.

    `torchserve_answers` makes every refusal TorchServe's InvalidKeyException instead of telling them apart.
    """

    def __init__(self, keys: Callable[[], Keys], time: Callable[[], float], torchserve_answers: bool) -> None:
        self._keys = keys
        self._time = time
        self._torchserve_answers = torchserve_answers
        self._wrong = Bucket(WRONG_BURST, WRONG_PER_SECOND, time())
        self._unsaid = 0

    def check(self, access: Access, authorization: Sequence[str]) -> None:
        """Raises Unauthorized, WrongScope or TooManyWrongTokens unless the one value shown opens this access."""
        if access is Access.OPEN:
            return
        # Two values could be one for us and one for somebody before us: none of them counts.
        match = _BEARER.fullmatch(authorization[0]) if len(authorization) == 1 else None
        if match is None:
            raise self._refusal(access, errors.Unauthorized(_HOW.format(access=access.value)))
        shown, now = digest_of(match[1]), self._time()
        good, expired = set(), False
        for scope, keys in self._keys().items():
            for key in keys:
                if not hmac.compare_digest(shown, key.digest):
                    continue
                if key.deadline is None or now < key.deadline:
                    good.add(scope)
                else:
                    expired = True
        if access in good:
            return
        if good:
            raise self._refusal(access, errors.WrongScope(access.value))
        if expired:
            raise self._refusal(access, errors.Unauthorized("the token has expired; read the new one, or renew it"))
        wrong = (
            errors.Unauthorized(_HOW.format(access=access.value))
            if self._count(shown, now)
            else errors.TooManyWrongTokens()
        )
        raise self._refusal(access, wrong)

    def _refusal(self, access: Access, error: errors.TorchdError) -> errors.TorchdError:
        if not self._torchserve_answers:
            return error
        return errors.InvalidKey("Authentication" if access is Access.ADMIN else "Authorization")

    def _count(self, shown: bytes, now: float) -> bool:
        """Whether there were not too many lately; one line in the log for each of those."""
        if not self._wrong.take(now):
            self._unsaid += 1
            return False
        more = f"; {self._unsaid} more before it" if self._unsaid else ""
        self._unsaid = 0
        logger.warning("a wrong token was shown (its hash begins with %s)%s", shown.hex()[:8], more)
        return True


_HOW = "no valid token was shown; send `Authorization: Bearer TOKEN` with the {access} token of the key file"


class Bucket:
    """So many at once, then so many a second."""

    def __init__(self, burst: float, per_second: float, now: float) -> None:
        self._level = self._burst = burst
        self._per_second = per_second
        self._at = now

    def take(self, now: float) -> bool:
        """Whether there is one more."""
        self._level = min(self._burst, self._level + (now - self._at) * self._per_second)
        self._at = now
        if self._level < 1:
            return False
        self._level -= 1
        return True
