"""The keys of the daemon and the file that holds them, in TorchServe's shape; `TokenFile` owns both.

In memory there are the words (to write the file again) and the hashes with their deadlines (for the guard).
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import secrets
import stat
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from torchd_server.settings import ServerSettings
from torchd_server.surfaces.auth import Access, Key, Keys

logger = logging.getLogger(__name__)

KEY_FILE = "key_file.json"
TOKEN_BYTES = 32
# 128 bits, as base64url writes them: what a key written by hand must have at least.
SHORTEST_TOKEN = 22
LONGEST_MINUTES = 100 * 365 * 24 * 60.0
MAX_FILE_BYTES = 64 * 1024
_TOKEN = re.compile(r"[!-~]+")
_NAMES = {Access.MANAGEMENT: "management", Access.INFERENCE: "inference", Access.ADMIN: "API"}
RENEWABLE = {"management": Access.MANAGEMENT, "inference": Access.INFERENCE}


class KeyFileInvalid(ValueError):
    """A key file that cannot be believed; the message says why."""


def key_file_of(settings: ServerSettings) -> Path:
    """Where the keys go: as told, else under `torchserve` where TorchServe writes them, else the run directory."""
    if settings.tokens.file is not None:
        return settings.tokens.file.absolute()
    return (Path() if settings.posture.name == "torchserve" else settings.run_dir).absolute() / KEY_FILE


def seconds_since_boot() -> float:
    """A clock that nobody sets, and that goes on while the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class TokenFile:
    """Three keys: inference, management, and the API key that renews the other two and never expires.

    With `rotates` the two are replaced by themselves at half their time, the replaced ones being good to their end, so
    that whoever reads the file always reads a token with time left.
    """

    def __init__(
        self, path: Path, lifetime_minutes: float, rotates: bool, now: Callable[[], float] = seconds_since_boot
    ) -> None:
        self.path = path
        self._lifetime = max(-1.0, min(lifetime_minutes, LONGEST_MINUTES)) * 60.0
        self._rotates = rotates
        self._now = now
        self._tokens = {scope: secrets.token_urlsafe(TOKEN_BYTES) for scope in _NAMES}
        self._expiry: dict[Access, str] = {}
        self._keys: dict[Access, list[Key]] = {Access.ADMIN: [Key.of(self._tokens[Access.ADMIN])]}
        for scope in RENEWABLE.values():
            self._put(scope, self._tokens[scope])
        self._written: bytes | None = None

    def keys(self) -> Keys:
        """The keys there are now."""
        return self._keys

    @property
    def rotation_seconds(self) -> float | None:
        """How long until `rotate` is due; None for never."""
        return self._lifetime / 2 if self._rotates else None

    def write(self) -> None:
        """Puts the keys into the file, readable by this user alone from its first moment, in place of what was."""
        content = self._content()
        staging = self.path.with_name(f".{self.path.name}.{secrets.token_hex(8)}")
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            with open(os.open(staging, flags, 0o600), "wb") as file:
                file.write(content)
            os.replace(staging, self.path)
        except OSError:
            staging.unlink(missing_ok=True)
            raise
        self._written = content

    def renew(self, scope: Access) -> None:
        """A new key for one scope: the old one dies now. Raises OSError, and changes nothing, where it cannot write."""
        before = (dict(self._tokens), dict(self._expiry), dict(self._keys))
        self._put(scope, secrets.token_urlsafe(TOKEN_BYTES))
        try:
            self.write()
        except OSError:
            self._tokens, self._expiry, self._keys = before
            raise

    def rotate(self) -> None:
        """New keys for both scopes; the old ones are good to their end."""
        before = (dict(self._tokens), dict(self._expiry), dict(self._keys))
        for scope in RENEWABLE.values():
            living = [key for key in self._keys[scope] if key.deadline is None or key.deadline > self._now()]
            self._put(scope, secrets.token_urlsafe(TOKEN_BYTES))
            self._keys[scope] += living
        try:
            self.write()
        except OSError as error:
            # Readers would find tokens that nobody knows: better that the old ones stay, and a person hears of it.
            self._tokens, self._expiry, self._keys = before
            logger.error("the key file %s cannot be written, the tokens stay as they are: %s", self.path, error)

    def reload(self) -> None:
        """Takes the keys that a person has written into the file; raises KeyFileInvalid, and changes nothing, if they
        cannot be taken. A key that has changed gets a full lifetime, whatever the file says of its end."""
        content = _read_private(self.path)
        tokens = _tokens_in(content)
        for scope, token in tokens.items():
            if token == self._tokens[scope]:
                continue
            if len(token) < SHORTEST_TOKEN:
                raise KeyFileInvalid(f"the {_NAMES[scope]} key has fewer than {SHORTEST_TOKEN} characters")
        for scope, token in tokens.items():
            if token != self._tokens[scope]:
                self._put(scope, token)
        self._written = content

    def remove(self) -> None:
        """Deletes the file if it is still the one this daemon wrote."""
        if self._written is None:
            return
        with contextlib.suppress(OSError, KeyFileInvalid):
            if _read_private(self.path) == self._written:
                self.path.unlink()

    def _put(self, scope: Access, token: str) -> None:
        self._tokens[scope] = token
        if scope is Access.ADMIN:
            self._keys[scope] = [Key.of(token)]
            return
        self._keys[scope] = [Key.of(token, self._now() + self._lifetime)]
        # For people: what decides is the deadline, which nobody can move by setting the clock.
        end = datetime.now(UTC) + timedelta(seconds=self._lifetime)
        self._expiry[scope] = end.isoformat(timespec="microseconds").replace("+00:00", "Z")

    def _content(self) -> bytes:
        document = {
            name: {"key": self._tokens[scope]}
            | ({"expiration time": self._expiry[scope]} if scope in self._expiry else {})
            for scope, name in _NAMES.items()
        }
        return json.dumps(document, indent=2).encode()


def _read_private(path: Path) -> bytes:
    """The file's bytes, if nobody else can have written or read it."""
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK), "rb") as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
                raise KeyFileInvalid(f"{path} must be a file of this user that nobody else may read (chmod 600)")
            return file.read(MAX_FILE_BYTES)
    except OSError as error:
        raise KeyFileInvalid(f"{path}: {error.strerror}") from error


def _tokens_in(content: bytes) -> Mapping[Access, str]:
    try:
        document: Any = json.loads(content)
        tokens = {scope: document[name]["key"] for scope, name in _NAMES.items()}
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise KeyFileInvalid("the key file is not JSON with the keys management, inference and API") from error
    if not all(isinstance(token, str) and _TOKEN.fullmatch(token) for token in tokens.values()):
        raise KeyFileInvalid("a key must be one word of printable characters")
    if len(set(tokens.values())) < len(tokens):
        raise KeyFileInvalid("two of the three keys are the same")
    return tokens
