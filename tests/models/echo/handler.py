"""A function handler that answers what it was sent."""


def handle(data, context):
    """TorchServe calls it once with None to load the model."""
    if data is None:
        context.loaded_by_function = True
        return None
    return [row["body"] for row in data]
