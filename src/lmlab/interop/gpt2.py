"""GPT-2 from Hugging Face: its configuration and weights as TransformerLM's."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from lmlab.interop.hub import find, load_config, load_weights

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


@dataclass(frozen=True)
class PretrainedGPT2:
    """node: the model's config, as conf/model/gpt2.yaml states it. weights: its state dict, whose vocabulary has
    `vocab_size` ids. tokenizer: tokenizer.json, or the folder of vocab.json and merges.txt where that is all there is;
    None without one."""

    node: dict[str, Any]
    vocab_size: int
    weights: dict[str, Tensor]
    tokenizer: Path | None


def load_gpt2(path_or_name: str) -> PretrainedGPT2:
    """path_or_name: a directory written by `save_pretrained`, or a name on the Hugging Face Hub.

    FileNotFoundError when it is not there or cannot be reached; ValueError when it is no GPT-2, or one with parts that
    TransformerLM has not.
    """
    theirs = load_config(path_or_name)
    node = _node(path_or_name, theirs)
    weights = _weights(path_or_name, load_weights(path_or_name), node)
    return PretrainedGPT2(node, len(weights["embed.weight"]), weights, _tokenizer(path_or_name))


def _tokenizer(name: str) -> Path | None:
    path = find(name, "tokenizer.json")
    find(name, "tokenizer_config.json")  # beside it: names <eos>
    if path is None and find(name, "merges.txt") and (vocabulary := find(name, "vocab.json")):
        path = vocabulary.parent
    return path


def _node(name: str, theirs: dict) -> dict[str, Any]:
    kind = theirs.get("model_type")
    if kind != "gpt2":
        raise ValueError(f"{name} has model_type={kind}: of Hugging Face's models only gpt2 can be loaded")
    # Absent keys mean GPT2Config's defaults.
    asked = {
        "activation_function": (theirs.get("activation_function", _GELU[0]), _GELU),
        "scale_attn_weights": (theirs.get("scale_attn_weights", True), (True,)),
        "scale_attn_by_inverse_layer_idx": (theirs.get("scale_attn_by_inverse_layer_idx", False), (False,)),
        "add_cross_attention": (theirs.get("add_cross_attention", False), (False,)),
    }
    for key, (value, known) in asked.items():
        if value not in known:
            raise ValueError(f"{name} has {key}={value}, which is not GPT-2 as published: only {known} can be loaded")
    return {
        "_target_": "lmlab.models.transformer.TransformerLM",
        "_partial_": True,
        "head": {"_target_": "lmlab.models.head.LinearHead", "_partial_": True, "bias": False, "softcap": None},
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


def _weights(name: str, weights: dict[str, Tensor], node: dict) -> dict[str, Tensor]:
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
