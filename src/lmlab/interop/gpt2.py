"""GPT-2 as TransformerLM, in and out: Hugging Face's configuration and weights under our names, and back."""

from typing import Any

from torch import Tensor

from lmlab.interop.layout import HEAD, MODEL, check, check_theirs

# Hugging Face's names of the tanh approximation of GELU.
_GELU = ("gelu_new", "gelu_pytorch_tanh")
# Theirs and ours, in each layer. Their Conv1D holds matrices transposed.
_NORMS = {"ln_1": "attention_norm", "ln_2": "mlp_norm"}
_LINEARS = {
    "attn.c_attn": "attention.qkv",
    "attn.c_proj": "attention.out",
    "mlp.c_fc": "mlp.up",
    "mlp.c_proj": "mlp.down",
}
# What the family fixes, in our words.
_LAYOUT = {
    "positions": "learned",
    "norm": "layer",
    "mlp": "gelu",
    "bias": True,
    "qk_norm": False,
    "window": None,
    "embed_ngram": 1,
}


def to_gpt2(config: dict[str, Any], state: dict[str, Tensor]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(config.json, state dict) of GPT2LMHeadModel.

    config: the arguments of TransformerLM, whose head is `linear_no_bias`. ValueError names what it cannot express.
    """
    check(config, state, "GPT-2's layers", _LAYOUT)
    width = config["d_model"] / config["n_heads"]
    for key, usual in (("n_kv_heads", config["n_heads"]), ("d_head", width)):
        if config[key] not in (None, usual):
            raise ValueError(f"{key}={config[key]} cannot be expressed as GPT-2's layers, which have {key}={usual:g}")
    theirs = {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        "vocab_size": config["vocab_size"],
        "n_embd": config["d_model"],
        "n_layer": config["n_layers"],
        "n_head": config["n_heads"],
        "n_inner": config["d_ff"],
        "n_positions": config["max_context"],
        "n_ctx": config["max_context"],  # llama.cpp's converter reads the older name
        "activation_function": _GELU[0],
        "layer_norm_epsilon": config["norm_eps"],
        "tie_word_embeddings": config["tie_embeddings"],
        "resid_pdrop": config["dropout"],
        "embd_pdrop": config["dropout_embed"],
        "attn_pdrop": config["dropout_attention"],
        "initializer_range": config["init_std"],
    }
    return theirs, _renamed(state)


def _renamed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    whole = {"embed": "transformer.wte", "position_embed": "transformer.wpe", "norm": "transformer.ln_f"}
    layer = {ours: theirs for theirs, ours in (_NORMS | _LINEARS).items()}
    out = {}
    for key, tensor in state.items():
        part, _, kind = key.rpartition(".")
        if part == "head":
            out[f"lm_head.{kind}"] = tensor
        elif part in whole:
            out[f"{whole[part]}.{kind}"] = tensor
        else:
            _, i, part = part.split(".", 2)
            turned = kind == "weight" and layer[part] in _LINEARS
            out[f"transformer.h.{i}.{layer[part]}.{kind}"] = tensor.t().contiguous() if turned else tensor
    return out


def read_node(name: str, theirs: dict[str, Any]) -> dict[str, Any]:
    """The model's config, as conf/model/gpt2.yaml states it. Raises ValueError where it is not GPT-2 as published."""
    # Absent keys mean GPT2Config's defaults.
    asked = {
        "activation_function": (theirs.get("activation_function", _GELU[0]), _GELU),
        "scale_attn_weights": (theirs.get("scale_attn_weights", True), (True,)),
        "scale_attn_by_inverse_layer_idx": (theirs.get("scale_attn_by_inverse_layer_idx", False), (False,)),
        "add_cross_attention": (theirs.get("add_cross_attention", False), (False,)),
        "quantization_config": (theirs.get("quantization_config"), (None,)),
    }
    check_theirs(name, asked)
    return {
        "_target_": MODEL,
        "_partial_": True,
        "head": {"_target_": HEAD, "_partial_": True, "bias": False, "softcap": None},
        "d_model": theirs.get("n_embd", 768),
        "n_layers": theirs.get("n_layer", 12),
        "n_heads": theirs.get("n_head", 12),
        "n_kv_heads": None,
        "d_head": None,
        "d_ff": theirs.get("n_inner"),
        "max_context": theirs.get("n_positions", 1024),
        "window": None,
        "positions": "learned",
        "rope_base": 10000.0,
        "norm": "layer",
        "norm_eps": theirs.get("layer_norm_epsilon", 1e-5),
        "mlp": "gelu",
        "qk_norm": False,
        "bias": True,
        "tie_embeddings": theirs.get("tie_word_embeddings", True),
        "embed_ngram": 1,
        "dropout": theirs.get("resid_pdrop", 0.1),
        "dropout_embed": theirs.get("embd_pdrop", 0.1),
        "dropout_attention": theirs.get("attn_pdrop", 0.1),
        "init_std": theirs.get("initializer_range", 0.02),
        "zero_init_out": False,
        "sublayers": None,
        "attention": "auto",
        "dropout_masks": "fresh",
    }


def read_weights(name: str, weights: dict[str, Tensor], node: dict[str, Any]) -> dict[str, Tensor]:
    """Their state dict under our names. Raises ValueError where a weight is missing."""
    # Files of the bare GPT2Model, such as the published ones, lack the prefix.
    weights = {key.removeprefix("transformer."): tensor for key, tensor in weights.items()}

    def take(key: str) -> Tensor:
        if key not in weights:
            raise ValueError(f"{name} lacks the weight {key}, so its file is not whole: fetch it again")
        return weights[key]

    state = {"embed.weight": take("wte.weight"), "position_embed.weight": take("wpe.weight")}
    for i in range(node["n_layers"]):
        for theirs, ours in _NORMS.items():
            for kind in ("weight", "bias"):
                state[f"blocks.{i}.{ours}.{kind}"] = take(f"h.{i}.{theirs}.{kind}")
        for theirs, ours in _LINEARS.items():
            state[f"blocks.{i}.{ours}.weight"] = take(f"h.{i}.{theirs}.weight").t().contiguous()
            state[f"blocks.{i}.{ours}.bias"] = take(f"h.{i}.{theirs}.bias")
    state |= {f"norm.{kind}": take(f"ln_f.{kind}") for kind in ("weight", "bias")}
    state["head.weight"] = state["embed.weight"] if node["tie_embeddings"] else take("lm_head.weight")
    return state
