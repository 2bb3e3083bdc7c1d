"""The archive's own helper."""

NAME = "ours"
