"""The daemon: it speaks to clients, owns every queue and every decision, and never imports torch."""

__version__ = "0.1.0"
