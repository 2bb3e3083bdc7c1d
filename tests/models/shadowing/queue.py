"""Not the standard library's: the archive's own."""

MINE = "queue"
