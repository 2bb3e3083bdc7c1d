"""What goes wrong with archives: ArchiveInvalid for what an archive holds, PackFailed for what cannot be packed."""

from collections.abc import Iterator
from contextlib import contextmanager


class ArchiveInvalid(ValueError):
    """An archive breaks a rule; names the archive, the entry inside it, and what to do about it."""

    def __init__(self, reason: str, *, entry: str | None = None, archive: str | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.entry = entry
        self.archive = archive

    def __str__(self) -> str:
        places = [
            f"{kind} {shown(name)}"
            for kind, name in (("archive", self.archive), ("entry", self.entry))
            if name is not None
        ]
        return ": ".join([*places, self.reason])


class PackFailed(ValueError):
    """What was asked for cannot be packed; the message says which input, why, and the way out."""


@contextmanager
def naming(archive: str) -> Iterator[None]:
    """Puts the archive's name into an ArchiveInvalid raised inside."""
    try:
        yield
    except ArchiveInvalid as error:
        if error.archive is None:
            error.archive = archive
        raise


def shown(text: str) -> str:
    """A foreign name as it may stand in a message: quoted, printable ASCII, of bounded length."""
    return ascii(text if len(text) <= 120 else text[:120] + "...")
