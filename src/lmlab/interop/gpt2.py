"""GPT-2 from Hugging Face: its configuration and weights as TransformerLM's."""

from pathlib import Path

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


def load_gpt2(path_or_name: str) -> tuple[dict, dict[str, Tensor]]:
    """(config, state): the arguments of `TransformerLM` but for the head (`linear_no_bias`), and its state dict.

    path_or_name: a directory written by `save_pretrained`, or a name on the Hugging Face Hub.
    FileNotFoundError when it is not there or cannot be reached; ValueError when it is no GPT-2, or one with parts that
    TransformerLM has not.
    """
    theirs = load_config(path_or_name)
    config = _config(path_or_name, theirs)
    return config, _state(path_or_name, load_weights(path_or_name), config)


def tokenizer_files(path_or_name: str) -> tuple[Path, ...]:
    """(tokenizer.json,), or (vocab.json, merges.txt) where that is all there is, or () without a tokenizer."""
    for names in (("tokenizer.json",), ("vocab.json", "merges.txt")):
        files = tuple(find(path_or_name, name) for name in names)
        if None not in files:
            return files
    return ()


def _config(name: str, theirs: dict) -> dict:
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
        "vocab_size": theirs.get("vocab_size", 50257),
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
    }


def _state(name: str, weights: dict[str, Tensor], config: dict) -> dict[str, Tensor]:
    # Files of the bare GPT2Model, such as the published ones, lack the prefix.
    weights = {key.removeprefix("transformer."): tensor for key, tensor in weights.items()}

    def take(key: str) -> Tensor:
        if key not in weights:
            raise ValueError(f"{name} lacks the weight {key}, so its file is not whole: fetch it again")
        return weights[key]

    state = {"embed.weight": take("wte.weight"), "position_embed.weight": take("wpe.weight")}
    for i in range(config["n_layers"]):
        for theirs, ours in _NORMS.items():
            for kind in ("weight", "bias"):
                state[f"blocks.{i}.{ours}.{kind}"] = take(f"h.{i}.{theirs}.{kind}")
        for theirs, ours in _LINEARS.items():
            state[f"blocks.{i}.{ours}.weight"] = take(f"h.{i}.{theirs}.weight").t().contiguous()
            state[f"blocks.{i}.{ours}.bias"] = take(f"h.{i}.{theirs}.bias")
    state |= {f"norm.{kind}": take(f"ln_f.{kind}") for kind in ("weight", "bias")}
    state["head.weight"] = state["embed.weight"] if config["tie_embeddings"] else take("lm_head.weight")
    return state
