"""Helpers of the tests: the daemon as a user starts it, its two surfaces, the gate, the leak check."""
