"""Llama and Qwen3 as transformers saves them, read: GPT-2's own tests are in test_gpt2."""

import json
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from safetensors.torch import load_file, save_file
from tests.interop.test_llama import CLASSES
from tests.test_initial import save_tokenizer

import lmlab
from lmlab.config import compose as configure
from lmlab.initial import read_initial
from lmlab.instantiate import instantiate
from lmlab.interop.llama import read_node
from lmlab.interop.pretrained import load_pretrained

TINY = {
    "vocab_size": 320, "hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 104, "max_position_embeddings": 64,
}  # fmt: skip
CASES = {
    "llama": ("llama", {}),
    "llama tied, every head its own keys": ("llama", {"tie_word_embeddings": True, "num_key_value_heads": None}),
    "llama with biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "qwen3": ("qwen3", {"head_dim": 16}),
    "qwen3 tied, of another base": (
        "qwen3",
        {"tie_word_embeddings": True, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
    ),
}


def saved(path, kind="qwen3", **changes):
    """A random model, saved by transformers; shard: its files' size."""
    shard = changes.pop("shard", "5GB")
    torch.manual_seed(0)
    config_class, model_class = CLASSES[kind]
    hf = model_class(config_class(**(TINY | changes), bos_token_id=0, eos_token_id=0)).eval()
    for p in hf.parameters():  # norms and biases too
        torch.nn.init.normal_(p, mean=float(p.ndim == 1), std=0.2)
    hf.save_pretrained(path, max_shard_size=shard)
    return hf


@torch.no_grad()
def assert_same(hf, node, weights, rows=320):
    made = instantiate(node)(vocab_size=rows)
    made.load_state_dict(weights)
    tokens = torch.randint(rows, (2, 50))
    ours = torch.log_softmax(made.eval().head.logits(made(tokens)[0]), -1)
    torch.testing.assert_close(ours, hf(tokens).logits.log_softmax(-1), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("kind", "changes"), CASES.values(), ids=CASES)
def test_log_probabilities_equal_those_of_transformers(kind, changes, tmp_path):
    hf = saved(tmp_path, kind, **changes)
    loaded = load_pretrained(str(tmp_path))
    assert_same(hf, loaded.node, loaded.weights)


def test_weights_in_parts_are_put_together(tmp_path):
    hf = saved(tmp_path, shard="50KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    loaded = load_pretrained(str(tmp_path))
    assert_same(hf, loaded.node, loaded.weights)


def test_a_config_of_transformers_4_says_the_same(tmp_path):
    hf = saved(tmp_path, "llama", rope_parameters={"rope_type": "default", "rope_theta": 5e5})
    config = json.loads((tmp_path / "config.json").read_text())
    del config["rope_parameters"]
    (tmp_path / "config.json").write_text(json.dumps(config | {"rope_theta": 5e5, "rope_scaling": None}))
    weights = load_file(tmp_path / "model.safetensors")
    save_file(weights | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(6)}, tmp_path / "model.safetensors")
    loaded = load_pretrained(str(tmp_path))
    assert_same(hf, loaded.node, loaded.weights)


@pytest.mark.parametrize("kind", CLASSES)
def test_what_a_config_leaves_out_is_what_transformers_takes(kind):
    node = read_node("it", {"model_type": kind})
    usual = CLASSES[kind][0]()
    assert (node["n_kv_heads"] or node["n_heads"]) == usual.num_key_value_heads
    assert (node["d_head"] or node["d_model"] // node["n_heads"]) == usual.head_dim
    theirs = {
        "d_model": "hidden_size", "n_layers": "num_hidden_layers", "n_heads": "num_attention_heads",
        "d_ff": "intermediate_size", "max_context": "max_position_embeddings", "norm_eps": "rms_norm_eps",
        "tie_embeddings": "tie_word_embeddings", "dropout_attention": "attention_dropout",
        "init_std": "initializer_range", "bias": "attention_bias",
    }  # fmt: skip
    assert {ours: node[ours] for ours in theirs} == {ours: getattr(usual, name) for ours, name in theirs.items()}
    assert node["rope_base"] == usual.rope_parameters["rope_theta"]


def test_the_node_has_the_keys_of_the_option():
    with initialize_config_dir(str(Path(__file__).parents[2] / "conf"), version_base=None):
        option = compose(overrides=["+model=transformer", "+batching=windows"]).model
    node = read_node("it", {"model_type": "qwen3"})
    assert node.keys() == option.keys()
    assert node["head"] == option["head"]


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("qwen2", {}, "model_type=qwen2: of Hugging Face's models only gpt2, llama, qwen3 can be loaded"),
        ("llama", {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "rope_type=llama3"),
        ("llama", {"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_type=linear"),
        ("qwen3", {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e6}}, "rope_type=yarn"),
        ("llama", {"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor=0.5"),
        ("llama", {"hidden_act": "gelu"}, "hidden_act=gelu, which TransformerLM has not: only silu or swish"),
        ("llama", {"attention_bias": True}, "mlp_bias=False, .* only True can be loaded"),
        ("qwen3", {"attention_bias": True}, "attention_bias=True, .* only False can be loaded"),
        ("qwen3", {"use_sliding_window": True}, "use_sliding_window=True"),
        ("qwen3", {"layer_types": ["sliding_attention", "full_attention"]}, "layer_types=sliding_attention"),
        ("llama", {"quantization_config": {"bits": 4}}, "quantization_config="),
    ],
)
def test_what_transformer_lm_has_not_is_named(kind, changes, message, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind} | changes))
    with pytest.raises(ValueError, match=message):
        load_pretrained(str(tmp_path))


def test_a_missing_and_a_strange_weight_are_named(tmp_path):
    saved(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    save_file(weights | {"score.weight": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"score.weight has no place in TransformerLM"):
        load_pretrained(str(tmp_path))
    del weights["model.layers.2.self_attn.k_norm.weight"]
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"lacks the weight model.layers.2.self_attn.k_norm.weight"):
        load_pretrained(str(tmp_path))


def test_a_run_begins_from_a_qwen3_and_its_tokenizer(small, tmp_path):
    hf = saved(tmp_path / "hf")
    save_tokenizer(tmp_path / "hf", tokens=260)
    kept = [o for o in small["transformer"] if not o.startswith(("tokenizer", "model"))]
    still = ["optimizer.lr=0.0", "optimizer.weight_decay=0.0", "trainer.max_steps=1"]
    lmlab.train(configure([f"init_from=hf:{tmp_path / 'hf'}", f"run_dir={tmp_path / 'run'}", *kept, *still]))
    run = lmlab.load(tmp_path / "run")
    assert run.tokenizer.vocab_size == 260
    assert_same(hf, run.config["model"], run.model.state_dict())
    assert read_initial(str(tmp_path / "run")).vocab_size == 320
