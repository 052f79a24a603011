import pytest
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from lmlab.interop.llama import from_llama, to_llama
from lmlab.models.head import LinearHead
from lmlab.models.transformer import TransformerLM

# conf/model/transformer.yaml, smaller.
CONFIG = {
    "vocab_size": 97, "d_model": 48, "n_layers": 3, "n_heads": 4, "n_kv_heads": 2, "d_head": None, "d_ff": 104,
    "max_context": 64, "window": None, "positions": "rotary", "rope_base": 10000.0, "norm": "rms", "norm_eps": 1e-6,
    "mlp": "swiglu", "qk_norm": True, "bias": False, "tie_embeddings": True, "embed_ngram": 1, "dropout": 0.0,
    "dropout_embed": 0.0, "dropout_attention": 0.0, "init_std": 0.2, "zero_init_out": False,
}  # fmt: skip
LLAMA = {"qk_norm": False}
CASES = {
    "qwen3": {},
    "qwen3 with wide heads": {"d_head": 16, "n_kv_heads": 1},
    "qwen3 untied": {"tie_embeddings": False},
    "llama": LLAMA,
    "llama with biases": LLAMA | {"bias": True, "tie_embeddings": False, "n_kv_heads": None, "rope_base": 5e5},
}
CLASSES = {"llama": (LlamaConfig, LlamaForCausalLM), "qwen3": (Qwen3Config, Qwen3ForCausalLM)}


def ours(config):
    torch.manual_seed(0)
    model = TransformerLM(**config, head=lambda **facts: LinearHead(bias=False, softcap=None, **facts))
    for p in model.parameters():  # norms and biases too
        torch.nn.init.normal_(p, mean=float(p.ndim == 1), std=0.2)
    return model.eval()


@torch.no_grad()
def assert_same_logits(model, hf, T=50):
    x = torch.randint(97, (2, T))
    ours, theirs = model.head.logits(model(x)[0]), hf.eval()(x).logits
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("changes", CASES.values(), ids=CASES)
def test_our_weights_give_the_same_logits_there(changes):
    config = CONFIG | changes
    model = ours(config)
    theirs, state = to_llama(config, model.state_dict())
    config_class, model_class = CLASSES[theirs["model_type"]]
    hf = model_class(config_class(**theirs))
    assert theirs["architectures"] == [model_class.__name__]
    hf.load_state_dict(state)
    assert_same_logits(model, hf)


@pytest.mark.parametrize("changes", CASES.values(), ids=CASES)
def test_their_weights_give_the_same_logits_here(changes):
    config = CONFIG | changes
    model = ours(config)
    theirs, _ = to_llama(config, model.state_dict())
    config_class, model_class = CLASSES[theirs["model_type"]]
    torch.manual_seed(1)
    hf = model_class(config_class(**theirs))
    model.load_state_dict(from_llama(hf.state_dict()))
    assert_same_logits(model, hf)


def test_our_window_is_their_sliding_window():
    config = CONFIG | LLAMA | {"window": 5}
    model = ours(config)
    theirs, state = to_llama(config | {"window": None}, model.state_dict())
    theirs = {k: v for k, v in theirs.items() if k not in ("attention_bias", "mlp_bias", "model_type")}
    hf = MistralForCausalLM(MistralConfig(**theirs, sliding_window=5))
    hf.load_state_dict(state)
    assert_same_logits(model, hf)


def test_out_and_back_changes_nothing():
    model = ours(CONFIG)
    _, theirs = to_llama(CONFIG, model.state_dict())
    del theirs["lm_head.weight"]  # as in a saved file of tied embeddings
    back = from_llama(theirs)
    assert back.keys() == model.state_dict().keys()
    assert all(torch.equal(back[k], t) for k, t in model.state_dict().items())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"positions": "alibi"}, "positions=alibi cannot be expressed"),
        ({"window": 5}, "window=5 cannot be expressed"),
        ({"embed_ngram": 2}, "embed_ngram=2 cannot be expressed"),
        ({"bias": True}, "bias=true cannot be expressed as Qwen3"),
        ({"head": {"_target_": "lmlab.models.head.LinearHead", "softcap": 30.0}}, "head.softcap=30.0 cannot be"),
    ],
)
def test_what_they_cannot_express_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        to_llama(CONFIG | changes, {})


def test_a_strangers_layout_is_refused():
    with pytest.raises(ValueError, match=r"model.layers.0.mlp.experts.weight has no place"):
        from_llama({"model.layers.0.mlp.experts.weight": torch.zeros(1)})
