"""TransformerLM's default layout as Hugging Face's Llama or Qwen3, out and back: the same numbers under their names."""

import torch
from torch import Tensor

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
# Options that older configs lack, with what their absence means.
_LAYOUT_SINCE = {"sublayers": None}


def to_llama(config: dict, state: dict[str, Tensor]) -> tuple[dict, dict[str, Tensor]]:
    """(config.json, state dict) of LlamaForCausalLM, or with query-key norm of Qwen3ForCausalLM.

    config: the arguments of TransformerLM, whose head is `linear_no_bias`. ValueError names what they cannot express.
    """
    for key, value in (_LAYOUT | _LAYOUT_SINCE).items():
        if config.get(key, _LAYOUT_SINCE.get(key)) != value:
            raise ValueError(f"{key}={config.get(key)} cannot be expressed as Llama or Qwen3, which have {key}={value}")
    qwen3 = config["qk_norm"]
    if qwen3 and config["bias"]:
        raise ValueError("bias=true cannot be expressed as Qwen3, which has none in its MLP: set qk_norm=false")
    if "head.bias" in state:
        raise ValueError(
            "a head with a bias cannot be expressed as Llama or Qwen3: train with model/head=linear_no_bias"
        )
    # A config without the head's node has the one that is named above.
    if (softcap := (config.get("head") or {}).get("softcap")) is not None:
        raise ValueError(f"head.softcap={softcap} cannot be expressed as Llama or Qwen3, whose logits have no cap")
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


def from_llama(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of LlamaForCausalLM or Qwen3ForCausalLM under TransformerLM's names."""
    out = {}
    for key, tensor in state.items():
        part, _, kind = key.rpartition(".")
        if part in _WHOLE:
            out[f"{_WHOLE[part]}.{kind}"] = tensor
            continue
        i, part = part.removeprefix("model.layers.").split(".", 1)
        if part in _LAYER:
            out[f"blocks.{i}.{_LAYER[part]}.{kind}"] = tensor
        elif part == _QKV[0]:
            parts = [state[f"model.layers.{i}.{name}.{kind}"] for name in _QKV]
            out[f"blocks.{i}.attention.qkv.{kind}"] = torch.cat(parts)
        elif part not in _QKV:
            raise ValueError(f"{key} has no place in TransformerLM: only Llama's and Qwen3's layouts can be read")
    # A saved file holds a tied matrix once.
    return {"head.weight": out["embed.weight"]} | out
