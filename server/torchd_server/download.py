"""Fetching an archive from a URL into the model store: off the event loop, within limits, under its name all at once.

Plain http.client over sockets of our own: the address that was checked is the address connected to, and nothing reads
proxies, .netrc or credentials from the environment. Only s3, gs and hf go through fsspec (an extra), which brings the
operator's own credentials to those services.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import http.client
import io
import logging
import os
import socket
import ssl
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urljoin

from torchd_server import errors
from torchd_server.url_policy import BUCKETS, Remote, UrlPolicy

logger = logging.getLogger(__name__)
PART_PREFIX = ".downloading-"
# A part may have been made and not be locked yet.
YOUNG_SECONDS = 1.0
_CHUNK = 1 << 18
_MIB = 1 << 20
_REDIRECTS = (301, 302, 303, 307, 308)
# Host, port -> addresses, as socket.getaddrinfo finds them.
Resolve = Callable[[str, int], list[str]]


@dataclass(frozen=True, slots=True)
class DownloadLimits:
    """How large an archive may be and how long it may take. Times in seconds."""

    bytes: int = 16 << 30
    total: float = 3600.0
    connect: float = 10.0
    idle: float = 30.0
    # Hops to other URLs, each checked as the first was; 0 follows none.
    redirects: int = 0


def resolve(host: str, port: int) -> list[str]:
    """Every address of a host, as this machine resolves it."""
    return [str(found[4][0]) for found in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]


class Downloads:
    """Fetches what the policy allows."""

    def __init__(
        self,
        policy: UrlPolicy,
        limits: DownloadLimits | None = None,
        resolver: Resolve = resolve,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._policy = policy
        self._limits = limits or DownloadLimits()
        self._resolve = resolver
        self._now = now

    async def clear(self, folder: Path) -> None:
        """Removes what daemons that were killed had begun to download into the folder."""
        await asyncio.to_thread(_clear, folder)

    async def fetch(self, url: str, folder: Path, s3_sse_kms: bool = False) -> Path:
        """Brings the URL's file into the folder and answers its path; a file of this name that is there stays.

        Raises UrlNotAllowed, BadRequest, ArchiveExists or DownloadFailed; then nothing is left behind.
        """
        remote = self._policy.check(url)
        target = folder / remote.file_name
        transfer = _Transfer(self._policy, self._limits, self._resolve, self._now, s3_sse_kms)
        running = asyncio.ensure_future(asyncio.to_thread(transfer.run, remote, target))
        try:
            await asyncio.shield(running)
        except asyncio.CancelledError:
            transfer.abort()
            await asyncio.wait([running])  # its thread cannot be cancelled, and may have come to its end
            if running.exception() is None:
                target.unlink(missing_ok=True)
            raise
        except errors.DownloadFailed as error:
            logger.warning("%s", error)
            raise
        return target


class _Transfer:
    """One file on its way; lives in a thread, and can be given up from another."""

    def __init__(
        self, policy: UrlPolicy, limits: DownloadLimits, resolver: Resolve, now: Callable[[], float], s3_sse_kms: bool
    ) -> None:
        self._policy = policy
        self._limits = limits
        self._resolve = resolver
        self._now = now
        self._s3_sse_kms = s3_sse_kms
        self._end = now() + limits.total
        self._socket: socket.socket | None = None
        self._is_given_up = False

    def run(self, remote: Remote, target: Path) -> None:
        """Copies the file under a name of our own, then gives it the target's name unless somebody has it."""
        if os.path.lexists(target):  # known before anything is fetched
            raise errors.ArchiveExists(target.name)
        try:
            descriptor, name = tempfile.mkstemp(prefix=PART_PREFIX, dir=target.parent)
        except OSError as error:
            raise errors.DownloadFailed(remote.url, f"the store cannot be written: {error.strerror}") from error
        part = Path(name)
        try:
            with open(descriptor, "wb") as file:
                fcntl.flock(descriptor, fcntl.LOCK_EX)  # by which other daemons of this store know that it lives
                self._copy(remote, file)
                file.flush()
                os.fsync(file.fileno())
            if self._is_given_up:
                raise errors.DownloadFailed(remote.url, "it was given up")
            _reserve(target)
            part.replace(target)
        except (OSError, http.client.HTTPException) as error:
            if isinstance(error, TimeoutError):
                raise errors.DownloadTimeout(remote.url, "the other side was too slow") from error
            raise errors.DownloadFailed(remote.url, f"{type(error).__name__}: {error}") from error
        finally:
            part.unlink(missing_ok=True)

    def abort(self) -> None:
        """Ends it soon: nobody waits any more."""
        self._is_given_up = True
        if self._socket is not None:
            try:
                self._socket.shutdown(socket.SHUT_RDWR)
            except OSError:
                return  # it has ended by itself

    def _copy(self, remote: Remote, file: BinaryIO) -> None:
        with self._open(remote) as (source, announced):
            if announced is not None and announced > self._limits.bytes:
                raise self._too_large(remote)
            size = 0
            while piece := source(_CHUNK):
                size += len(piece)
                if size > self._limits.bytes:
                    raise self._too_large(remote)
                if self._is_given_up or self._now() > self._end:
                    raise errors.DownloadTimeout(remote.url, f"it took more than {self._limits.total:g} s")
                file.write(piece)
            if announced is not None and size != announced:
                raise errors.DownloadFailed(remote.url, f"{size} of {announced} bytes came")

    def _too_large(self, remote: Remote) -> errors.DownloadTooLarge:
        return errors.DownloadTooLarge(remote.url, f"it has more than {self._limits.bytes} bytes, the limit")

    def _open(self, remote: Remote) -> AbstractContextManager[tuple[Callable[[int], bytes], int | None]]:
        """What reads the file piece by piece, and how large it is where the other side has said so."""
        if remote.scheme == "file":
            return _local(remote)
        if remote.scheme in BUCKETS:
            return _bucket(remote, self._s3_sse_kms)
        return self._web(remote)

    @contextmanager
    def _web(self, remote: Remote) -> Iterator[tuple[Callable[[int], bytes], int | None]]:
        for _ in range(self._limits.redirects + 1):
            with closing(self._dial(remote)) as raw:
                connection = _connection(remote, raw, lambda: min(self._limits.idle, self._end - self._now()))
                headers = {"Accept-Encoding": "identity", "User-Agent": "torchd", "Connection": "close"}
                connection.request("GET", remote.target, headers=headers)
                response = connection.getresponse()
                if response.status in _REDIRECTS:
                    remote = self._next_hop(remote, response.headers.get("Location", ""))
                    continue
                if response.status != 200:
                    raise errors.DownloadFailed(remote.url, f"the server answered {response.status}")
                if response.headers.get("Content-Encoding", "identity") != "identity":
                    raise errors.DownloadFailed(remote.url, "the server packed the file, which nobody had asked for")
                with response:
                    yield response.read1, response.length
                return
        raise errors.RedirectNotAllowed(f"{remote.url}: more than {self._limits.redirects} redirects")

    def _next_hop(self, remote: Remote, location: str) -> Remote:
        if not self._limits.redirects:
            raise errors.RedirectNotAllowed(f"{remote.url} redirects elsewhere; give the address it leads to")
        try:
            hop = self._policy.check(urljoin(remote.url, location))
        except errors.BadRequest as error:
            raise errors.RedirectNotAllowed(f"{remote.url} redirects to what is no URL") from error
        if hop.scheme not in ("http", "https") or (remote.scheme, hop.scheme) == ("https", "http"):
            raise errors.RedirectNotAllowed(f"{remote.url} redirects to {hop.scheme}")
        return hop

    def _dial(self, remote: Remote) -> socket.socket:
        """A connection to an address that was checked; the name is resolved once, here."""
        try:
            addresses = self._resolve(remote.host, remote.port)
        except (OSError, UnicodeError) as error:
            raise errors.DownloadFailed(remote.url, "its host cannot be found") from error
        for address in addresses:  # also of several: one that will not do condemns the name
            self._policy.check_address(remote, address)
        failure: OSError | None = None
        for address in addresses:
            try:
                return self._dial_address(remote, address)
            except OSError as error:
                failure = error
        raise errors.DownloadFailed(remote.url, f"its host cannot be reached: {failure}")

    def _dial_address(self, remote: Remote, address: str) -> socket.socket:
        raw = socket.create_connection((address, remote.port), timeout=self._limits.connect)
        try:
            if remote.scheme == "https":
                raw = ssl.create_default_context().wrap_socket(raw, server_hostname=remote.host)
        except BaseException:
            raw.close()
            raise
        self._socket = raw
        if self._is_given_up:
            self.abort()
        return raw


def _clear(folder: Path) -> None:
    for part in folder.glob(f"{PART_PREFIX}*"):
        with contextlib.suppress(OSError):  # it is somebody else's, or gone, or just being made
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            with open(os.open(part, flags), "rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if time.time() - os.fstat(file.fileno()).st_mtime > YOUNG_SECONDS:
                    part.unlink()
                    logger.warning("%s, a download that was broken off, was removed", part)


def _reserve(target: Path) -> None:
    """Takes the name for us, so that the rename that follows never takes another file's place."""
    try:
        os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    except FileExistsError as error:
        raise errors.ArchiveExists(target.name) from error


def _connection(remote: Remote, raw: socket.socket, patience: Callable[[], float]) -> http.client.HTTPConnection:
    connection = http.client.HTTPConnection(remote.host, remote.port)
    if remote.scheme == "https":
        connection.default_port = 443  # else the Host header would carry the port
    connection.sock = _TimedSocket(raw, patience)
    return connection


class _TimedSocket:
    """As much of a socket as http.client uses; every wait on it has an end, and all of them together."""

    def __init__(self, raw: socket.socket, patience: Callable[[], float]) -> None:
        self._raw = raw
        self._patience = patience

    def sendall(self, data: bytes) -> None:
        self._arm()
        self._raw.sendall(data)

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(_TimedReader(self._raw, self._arm))

    def close(self) -> None:
        """The connection lets go before the body is read; whoever dialled closes it."""

    def _arm(self) -> None:
        seconds = self._patience()
        if seconds <= 0:
            raise TimeoutError("the time for the whole file is over")
        self._raw.settimeout(seconds)


class _TimedReader(io.RawIOBase):
    def __init__(self, raw: socket.socket, arm: Callable[[], None]) -> None:
        self._raw = raw
        self._arm = arm

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._arm()
        return self._raw.recv_into(buffer)


@contextmanager
def _local(remote: Remote) -> Iterator[tuple[Callable[[int], bytes], int | None]]:
    # O_NONBLOCK: a fifo would wait for a writer.
    descriptor = os.open(remote.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise errors.DownloadFailed(remote.url, "it is no regular file")
        yield file.read, status.st_size


@contextmanager
def _bucket(remote: Remote, s3_sse_kms: bool) -> Iterator[tuple[Callable[[int], bytes], int | None]]:
    try:
        import fsspec
    except ImportError as error:
        raise errors.DownloadFailed(
            remote.url, f"{remote.scheme}:// needs the extra: pip install torchd[remote]"
        ) from error
    options: dict[str, Any] = {"block_size": 8 * _MIB}
    if s3_sse_kms and remote.scheme == "s3":
        options["s3_additional_kwargs"] = {"ServerSideEncryption": "aws:kms"}
    try:
        with fsspec.open(remote.url, "rb", **options) as file:
            yield file.read, None
    except errors.TorchdError:  # from whoever reads
        raise
    except ImportError as error:  # fsspec itself is there, the driver of this scheme is not
        raise errors.DownloadFailed(remote.url, f"{error}: pip install torchd[remote]") from error
    except Exception as error:  # a door to foreign code: each driver raises classes of its own
        raise errors.DownloadFailed(remote.url, f"{type(error).__name__}: {error}") from error
