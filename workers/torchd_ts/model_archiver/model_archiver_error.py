"""ModelArchiverError."""


class ModelArchiverError(Exception):
    """The model cannot be packed; the message says why."""
