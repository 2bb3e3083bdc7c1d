"""How many pixels an image has by its header: PNG, JPEG, GIF, WebP. Nothing is decoded, and nothing is believed."""

from __future__ import annotations

import struct

from torchd_protos.frames import Buffer

# More than any model takes; who claims more is taken at this.
PIXELS_AT_MOST = 2**28
# A JPEG's size stands behind its comments and profiles; so far is looked for it.
LOOKED_AT_BYTES = 64 * 1024
SEGMENTS_AT_MOST = 64
# Frame headers (SOF): C0 to CF without tables (C4), the reserved C8 and arithmetic conditioning (CC).
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


def pixels_of(body: Buffer) -> int:
    """Width times height, bounded; 0 if it is no image of these kinds or its header is broken."""
    head = bytes(body[:32])
    try:
        if head.startswith(b"\x89PNG\r\n\x1a\n"):
            width, height = struct.unpack_from(">II", head, 16)
        elif head.startswith((b"GIF87a", b"GIF89a")):
            width, height = struct.unpack_from("<HH", head, 6)
        elif head.startswith(b"\xff\xd8"):
            width, height = _jpeg(bytes(body[:LOOKED_AT_BYTES]))
        elif head.startswith(b"RIFF") and head[8:12] == b"WEBP":
            width, height = _webp(head)
        else:
            return 0
    except (struct.error, IndexError):  # it ends too soon
        return 0
    return min(int(width * height), PIXELS_AT_MOST)


def _jpeg(data: bytes) -> tuple[int, int]:
    """Goes from segment to segment until one is a frame's header."""
    at = 2
    for _ in range(SEGMENTS_AT_MOST):
        while data[at] == 0xFF and data[at + 1] == 0xFF:  # fill bytes
            at += 1
        marker, size = data[at + 1], struct.unpack_from(">H", data, at + 2)[0]
        if data[at] != 0xFF or size < 2:
            return 0, 0
        if marker in _FRAMES:
            height, width = struct.unpack_from(">HH", data, at + 5)
            return width, height
        at += 2 + size
    return 0, 0


def _webp(head: bytes) -> tuple[int, int]:
    kind = head[12:16]
    if kind == b"VP8X":
        return 1 + int.from_bytes(head[24:27], "little"), 1 + int.from_bytes(head[27:30], "little")
    if kind == b"VP8L":
        bits = struct.unpack_from("<I", head, 21)[0]
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", head, 26)
        return width & 0x3FFF, height & 0x3FFF
    return 0, 0
