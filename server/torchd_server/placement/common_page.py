"""The page of memory in which a worker says which batch it has begun: read when it has died, and never waited for."""

from __future__ import annotations

import fcntl
import os
import sys
from types import TracebackType

_BYTES = 8


class CommonPage:
    """One number, written by the worker. It is the daemon's to close."""

    def __init__(self) -> None:
        self._fd = os.memfd_create("torchd-begun", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(self._fd, _BYTES)
        # A worker cannot take it away, by which its batches would seem not to have begun.
        fcntl.fcntl(self._fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)

    @property
    def begun(self) -> int:
        """Number of the last batch that the worker has begun, 0 before the first."""
        return int.from_bytes(os.pread(self._fd, _BYTES, 0), sys.byteorder)

    def fileno(self) -> int:
        """Its descriptor, for the worker to inherit."""
        return self._fd

    def close(self) -> None:
        """Gives it back; may be called twice."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> CommonPage:
        """Closes it at the end of a block."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
