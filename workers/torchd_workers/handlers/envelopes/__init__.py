"""Service envelopes: they take requests out of a platform's format and put answers into it. A new one is a row."""

ENVELOPES = {
    name: f"torchd_workers.handlers.envelopes.{module}"
    for name, module in {"body": "body", "json": "json", "kserve": "kserve", "kservev2": "kservev2"}.items()
}
