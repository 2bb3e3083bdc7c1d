"""What makes a search impossible or its request wrong; the message says the way out."""

from __future__ import annotations


class TuneFailed(Exception):
    """The search cannot begin or go on."""


class SpaceInvalid(TuneFailed):
    """What was given as --space, --slo or --allow cannot be understood."""


class ConfigInvalid(TuneFailed):
    """The archive's model-config.yaml is none that can be tuned."""
