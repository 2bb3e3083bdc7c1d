"""Handlers whose model is spread over several processes."""
