"""The daemon: it speaks to clients, owns every queue and every decision, and never imports torch."""
