"""What a TransformerLM must be, so that a family of Hugging Face's has a place for all of it."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

MODEL = "lmlab.models.transformer.TransformerLM"
HEAD = "lmlab.models.head.LinearHead"
# Options that older configs lack, with what their absence means; no family has anything else.
_SINCE = {"sublayers": None}


def check(config: Mapping[str, Any], state: Mapping[str, Tensor], family: str, layout: Mapping[str, Any]) -> None:
    """Raises ValueError naming what of the model `family` cannot express.

    config: the arguments of TransformerLM; without the head's node it has `linear_no_bias`. layout: what `family`
    fixes, in our words.
    """
    for key, value in (layout | _SINCE).items():
        if config.get(key, _SINCE.get(key)) != value:
            raise ValueError(f"{key}={config.get(key)} cannot be expressed as {family}, which have {key}={value}")
    head = config.get("head") or {}
    if (kind := head.get("_target_", HEAD)) != HEAD:
        raise ValueError(
            f"a {kind.rpartition('.')[2]} cannot be expressed as {family}: train with model/head=linear_no_bias"
        )
    if "head.bias" in state:
        raise ValueError(f"a head with a bias cannot be expressed as {family}: train with model/head=linear_no_bias")
    if (softcap := head.get("softcap")) is not None:
        raise ValueError(f"head.softcap={softcap} cannot be expressed as {family}, whose logits have no cap")


def check_theirs(name: str, asked: Mapping[str, tuple[Any, tuple]]) -> None:
    """Raises ValueError naming the first key of a config.json that TransformerLM cannot express.

    asked: {key: (its value there, the values that can be loaded)}.
    """
    for key, (value, known) in asked.items():
        if value not in known:
            raise ValueError(
                f"{name} has {key}={value}, which TransformerLM has not: only {' or '.join(map(str, known))} "
                "can be loaded"
            )
