"""What of a model is split how: transformers' plan where the model ships one, else ours for the common encoders.

A plan maps names of modules or parameters, `*` for a layer's number, to the names of styles (styles.py).
"""

from __future__ import annotations

import re
from typing import Any

from torch import nn

_ATTENTION = {"query": "colwise", "key": "colwise", "value": "colwise"}
_BERT = {
    **{f"encoder.layer.*.attention.self.{name}": style for name, style in _ATTENTION.items()},
    "encoder.layer.*.attention.output.dense": "rowwise",
    "encoder.layer.*.intermediate.dense": "colwise",
    "encoder.layer.*.output.dense": "rowwise",
}
_DISTILBERT = {
    **{f"transformer.layer.*.attention.{name}": "colwise" for name in ("q_lin", "k_lin", "v_lin")},
    "transformer.layer.*.attention.out_lin": "rowwise",
    "transformer.layer.*.ffn.lin1": "colwise",
    "transformer.layer.*.ffn.lin2": "rowwise",
}
# Of the model without its head, by `model_type` of its configuration.
PLANS: dict[str, dict[str, str]] = {
    **dict.fromkeys(("bert", "camembert", "electra", "roberta", "xlm-roberta"), _BERT),
    "distilbert": _DISTILBERT,
}

# Output features of these are heads, of which a rank has whole ones.
_KEYS = ("k_proj", "key", "k_lin", "qkv_proj", "query_key_value")


class CannotSplit(ValueError):
    """A model cannot be split over so many ranks by tensor parallelism; says why, and what can be done instead."""

    def __init__(self, model: nn.Module, size: int, why: str) -> None:
        super().__init__(
            f"{type(model).__name__} cannot be split over {size} ranks by tensor parallelism: {why}. "
            "parallelType: pp splits it into stages instead"
        )


def plan_of(model: nn.Module, size: int) -> dict[str, str]:
    """The styles of the model's modules and parameters by their full names; raises CannotSplit."""
    plan = _general_plan(model)
    names = [name for name, _ in model.named_modules()] + [name for name, _ in model.named_parameters()]
    found = {name: plan[general] for name in names if (general := _general(name)) in plan}
    if not found:
        kind = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
        raise CannotSplit(model, size, f"transformers has no plan for models of the type {kind!r}, and torchd has none")
    _check_heads(model, size, found)
    return found


def _general_plan(model: nn.Module) -> dict[str, str]:
    shipped: dict[str, str] = getattr(model, "_tp_plan", None) or {}
    # A head's own rule alone does not split what is below it.
    if any("*" in name for name in shipped):
        return shipped
    ours = PLANS.get(getattr(getattr(model, "config", None), "model_type", ""), {})
    base = getattr(model, "base_model_prefix", "")
    prefix = f"{base}." if base and hasattr(model, base) else ""
    return {prefix + name: style for name, style in ours.items()}


def _check_heads(model: nn.Module, size: int, plan: dict[str, str]) -> None:
    if not any(style == "colwise" and name.rsplit(".", 1)[-1] in _KEYS for name, style in plan.items()):
        return  # attention is gathered before it is cut into heads, or not split at all
    config: Any = getattr(model, "config", None)
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    for attribute, what in (("num_attention_heads", "attention heads"), ("num_key_value_heads", "key-value heads")):
        heads = getattr(config, attribute, None)
        if isinstance(heads, int) and heads % size:
            fitting = ", ".join(str(number) for number in range(1, heads + 1) if heads % number == 0)
            raise CannotSplit(
                model, size, f"its {heads} {what} cannot be dealt out evenly to {size}; {fitting} ranks can have them"
            )


def _general(name: str) -> str:
    return re.sub(r"\.\d+(?=\.|$)", ".*", name)
