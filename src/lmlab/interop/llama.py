"""TransformerLM's default layout as Hugging Face's Llama or Qwen3, out and back: the same numbers under their names."""

from typing import Any

import torch
from torch import Tensor

from lmlab.interop.layout import HEAD, MODEL, check, check_theirs

# Theirs and ours; attention.qkv is their three projections, one below the other.
_WHOLE = {"model.embed_tokens": "embed", "model.norm": "norm", "lm_head": "head"}
_LAYER = {
    "input_layernorm": "attention_norm",
    "self_attn.o_proj": "attention.out",
    "self_attn.q_norm": "attention.q_norm",
    "self_attn.k_norm": "attention.k_norm",
    "post_attention_layernorm": "mlp_norm",
    "mlp.gate_proj": "mlp.gate",
    "mlp.up_proj": "mlp.up",
    "mlp.down_proj": "mlp.down",
}
_QKV = tuple(f"self_attn.{part}_proj" for part in "qkv")
# What both families fix, in our words.
_LAYOUT = {"positions": "rotary", "norm": "rms", "mlp": "swiglu", "window": None, "embed_ngram": 1}
# LlamaConfig's and Qwen3Config's defaults, which a config.json may leave out; and where the two differ.
_DEFAULTS = {
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "rms_norm_eps": 1e-6,
    "initializer_range": 0.02,
    "attention_dropout": 0.0,
    "tie_word_embeddings": False,
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "use_sliding_window": False,
    "quantization_config": None,
}
_DEFAULTS_OF = {
    "llama": {
        "intermediate_size": 11008,
        "num_key_value_heads": None,
        "head_dim": None,
        "max_position_embeddings": 2048,
    },
    "qwen3": {
        "intermediate_size": 22016,
        "num_key_value_heads": 32,
        "head_dim": 128,
        "max_position_embeddings": 32768,
    },
}


def to_llama(config: dict, state: dict[str, Tensor]) -> tuple[dict, dict[str, Tensor]]:
    """(config.json, state dict) of LlamaForCausalLM, or with query-key norm of Qwen3ForCausalLM.

    config: the arguments of TransformerLM, whose head is `linear_no_bias`. ValueError names what they cannot express.
    """
    check(config, state, "Llama or Qwen3", _LAYOUT)
    qwen3 = config["qk_norm"]
    if qwen3 and config["bias"]:
        raise ValueError("bias=true cannot be expressed as Qwen3, which has none in its MLP: set qk_norm=false")
    if not qwen3 and config["d_model"] % config["n_heads"]:
        raise ValueError(
            f"d_model={config['d_model']} cannot be expressed as Llama's, a multiple of n_heads={config['n_heads']}: "
            "set qk_norm=true"
        )
    n_kv_heads = config["n_kv_heads"] or config["n_heads"]
    d_head = config["d_head"] or config["d_model"] // config["n_heads"]
    theirs = {
        "model_type": "qwen3" if qwen3 else "llama",
        "architectures": ["Qwen3ForCausalLM" if qwen3 else "LlamaForCausalLM"],
        "vocab_size": config["vocab_size"],
        "hidden_size": config["d_model"],
        "num_hidden_layers": config["n_layers"],
        "num_attention_heads": config["n_heads"],
        "num_key_value_heads": n_kv_heads,
        "head_dim": d_head,
        "intermediate_size": len(state["blocks.0.mlp.up.weight"]),
        "max_position_embeddings": config["max_context"],
        "rope_parameters": {"rope_type": "default", "rope_theta": config["rope_base"]},
        # What transformers 4 reads, and what stands on it.
        "rope_theta": config["rope_base"],
        "rms_norm_eps": config["norm_eps"],
        "hidden_act": "silu",
        "attention_bias": config["bias"],
        "attention_dropout": config["dropout_attention"],
        "tie_word_embeddings": config["tie_embeddings"],
        "initializer_range": config["init_std"],
    } | ({} if qwen3 else {"mlp_bias": config["bias"]})
    return theirs, _renamed(state, [config["n_heads"] * d_head, n_kv_heads * d_head, n_kv_heads * d_head])


def _renamed(state: dict[str, Tensor], sizes: list[int]) -> dict[str, Tensor]:
    whole = {ours: theirs for theirs, ours in _WHOLE.items()}
    layer = {ours: theirs for theirs, ours in _LAYER.items()}
    out = {}
    for key, tensor in state.items():
        part, _, kind = key.rpartition(".")
        if not part.startswith("blocks."):
            out[f"{whole[part]}.{kind}"] = tensor
            continue
        _, i, part = part.split(".", 2)
        pieces = zip(_QKV, tensor.split(sizes), strict=True) if part == "attention.qkv" else [(layer[part], tensor)]
        out |= {f"model.layers.{i}.{name}.{kind}": piece for name, piece in pieces}
    return out


def read_node(name: str, theirs: dict[str, Any]) -> dict[str, Any]:
    """The model's config, as conf/model/transformer.yaml states it. Raises ValueError naming what that has not."""
    qwen3 = theirs["model_type"] == "qwen3"
    theirs = _DEFAULTS | _DEFAULTS_OF[theirs["model_type"]] | theirs
    # Since transformers 5 one key, before two; a checkpoint may have either.
    rope = theirs.get("rope_parameters") or theirs.get("rope_scaling") or {}
    bias = theirs["attention_bias"]
    asked = {
        "hidden_act": (theirs["hidden_act"], ("silu", "swish")),
        "attention_bias": (bias, (False,) if qwen3 else (False, True)),
        # As the attention: ours has one switch for both.
        "mlp_bias": (theirs["mlp_bias"], (bias,)),
        "rope_type": (rope.get("rope_type", rope.get("type", "default")), ("default",)),
        "partial_rotary_factor": (rope.get("partial_rotary_factor", theirs.get("partial_rotary_factor", 1)), (1,)),
        "use_sliding_window": (theirs["use_sliding_window"], (False,)),
        "quantization_config": (theirs["quantization_config"], (None,)),
    }
    check_theirs(name, asked)
    for kind in theirs.get("layer_types") or ():
        check_theirs(name, {"layer_types": (kind, ("full_attention",))})
    return {
        "_target_": MODEL,
        "_partial_": True,
        "head": {"_target_": HEAD, "_partial_": True, "bias": False, "softcap": None},
        "d_model": theirs["hidden_size"],
        "n_layers": theirs["num_hidden_layers"],
        "n_heads": theirs["num_attention_heads"],
        "n_kv_heads": theirs["num_key_value_heads"],
        "d_head": theirs["head_dim"],
        "d_ff": theirs["intermediate_size"],
        "max_context": theirs["max_position_embeddings"],
        "window": None,
        "positions": "rotary",
        "rope_base": float(rope.get("rope_theta", theirs.get("rope_theta", 10000.0))),
        "norm": "rms",
        "norm_eps": theirs["rms_norm_eps"],
        "mlp": "swiglu",
        "qk_norm": qwen3,
        "bias": bias,
        "tie_embeddings": theirs["tie_word_embeddings"],
        "embed_ngram": 1,
        "dropout": 0.0,
        "dropout_embed": 0.0,
        "dropout_attention": theirs["attention_dropout"],
        "init_std": theirs["initializer_range"],
        "zero_init_out": False,
        "sublayers": None,
        "attention": "auto",
        "dropout_masks": "fresh",
    }


def read_weights(name: str, weights: dict[str, Tensor], node: dict[str, Any]) -> dict[str, Tensor]:
    """Their state dict under our names. Raises ValueError where a weight is missing, or is of no such model."""
    # Angles that follow from the base, in files of old.
    weights = {key: tensor for key, tensor in weights.items() if not key.endswith("rotary_emb.inv_freq")}
    for key in _expected(node):
        if key not in weights:
            raise ValueError(f"{name} lacks the weight {key}, so its file is not whole: fetch it again")
    state = from_llama(weights)
    return state | {"head.weight": state["embed.weight"]} if node["tie_embeddings"] else state


def _expected(node: dict[str, Any]) -> list[str]:
    """Their names of the weights that such a model has."""
    whole = [part for part in _WHOLE if part != "lm_head" or not node["tie_embeddings"]]
    layer = [part for part in (*_LAYER, *_QKV) if node["qk_norm"] or part[-6:] not in ("q_norm", "k_norm")]
    names = [f"{part}.weight" for part in whole]
    for i in range(node["n_layers"]):
        names += [f"model.layers.{i}.{part}.weight" for part in layer]
        names += [f"model.layers.{i}.{part}.bias" for part in layer if node["bias"] and part.endswith("_proj")]
    return names


def from_llama(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of LlamaForCausalLM or Qwen3ForCausalLM under TransformerLM's names."""
    out = {}
    for key, tensor in state.items():
        part, _, kind = key.rpartition(".")
        if part in _WHOLE:
            out[f"{_WHOLE[part]}.{kind}"] = tensor
            continue
        i, _, part = part.removeprefix("model.layers.").partition(".")
        if part in _LAYER:
            out[f"blocks.{i}.{_LAYER[part]}.{kind}"] = tensor
        elif part == _QKV[0]:
            parts = [state[f"model.layers.{i}.{name}.{kind}"] for name in _QKV]
            out[f"blocks.{i}.attention.qkv.{kind}"] = torch.cat(parts)
        elif part not in _QKV:
            raise ValueError(f"{key} has no place in TransformerLM: only Llama's and Qwen3's layouts can be read")
    # A saved file holds a tied matrix once.
    return {"head.weight": out["embed.weight"]} | out
