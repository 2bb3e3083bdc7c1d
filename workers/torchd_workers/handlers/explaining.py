"""Captum, which explains predictions. It is an extra: its absence is told when somebody asks for an explanation."""

from __future__ import annotations

from typing import Any


class ExplanationsNotInstalled(RuntimeError):
    """Captum is asked for and is not there."""

    def __init__(self) -> None:
        super().__init__("explanations are made by captum, which is not installed: pip install 'torchd[captum]'")


def integrated_gradients(model: Any) -> Any:
    """Captum's IntegratedGradients of a model; raises ExplanationsNotInstalled."""
    return _captum().IntegratedGradients(model)


def layer_integrated_gradients(model: Any, layer: Any) -> Any:
    """Captum's LayerIntegratedGradients of a layer of a model; raises ExplanationsNotInstalled."""
    return _captum().LayerIntegratedGradients(model, layer)


def token_reference() -> Any:
    """Captum's TokenReferenceBase; raises ExplanationsNotInstalled."""
    return _captum().TokenReferenceBase()


def _captum() -> Any:
    try:
        import captum.attr  # optional, and it brings matplotlib
    except ModuleNotFoundError as error:
        raise ExplanationsNotInstalled from error
    return captum.attr
