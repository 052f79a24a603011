import json
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from transformers import GPT2Config, GPT2LMHeadModel, GPT2Model

from lmlab.interop.pretrained import load_pretrained
from lmlab.models import kernels

TINY = {"vocab_size": 97, "n_embd": 48, "n_layer": 3, "n_head": 4, "n_positions": 32}


def random_gpt2(**changes):
    torch.manual_seed(0)
    hf = GPT2LMHeadModel(GPT2Config(**(TINY | changes), bos_token_id=0, eos_token_id=0)).eval()
    for p in hf.parameters():  # norms and biases too
        torch.nn.init.normal_(p, mean=float(p.ndim == 1), std=0.2)
    return hf


def load(path):
    loaded = load_pretrained(str(path))
    model = instantiate(loaded.node)(vocab_size=loaded.vocab_size)
    model.load_state_dict(loaded.weights)
    return model.eval()


@torch.no_grad()
def assert_same_logits(model, hf):
    x = torch.randint(97, (2, 32))
    torch.testing.assert_close(model.head.logits(model(x)[0]), hf(x).logits, atol=1e-5, rtol=1e-5)


def fetched(monkeypatch, folder, name):
    """The Hub's cache, offline, with an empty snapshot of a model to be filled."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    model, commit = folder / f"models--{name}", "1" * 40
    (model / "refs").mkdir(parents=True)
    (model / "refs" / "main").write_text(commit)
    (model / "snapshots" / commit).mkdir(parents=True)
    return model / "snapshots" / commit


def test_offline_a_model_in_the_cache_of_the_hub_is_loaded_without_the_files_that_it_has_not(tmp_path, monkeypatch):
    hf = random_gpt2()
    hf.save_pretrained(fetched(monkeypatch, tmp_path, "tiny"))
    assert_same_logits(load("tiny"), hf)
    with pytest.raises(FileNotFoundError, match="other is no directory here, and the Hugging Face Hub cannot be"):
        load("other")


def test_offline_a_model_of_which_the_cache_holds_a_part_is_told_what_is_missing(tmp_path, monkeypatch):
    folder = fetched(monkeypatch, tmp_path, "tiny")
    random_gpt2().save_pretrained(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"tiny holds no pytorch_model\.bin: .* `hf download`"):
        load("tiny")


@pytest.mark.parametrize("changes", [{}, {"n_inner": 72}, {"tie_word_embeddings": False}], ids=str)
def test_logits_equal_those_of_transformers(tmp_path, changes):
    hf = random_gpt2(**changes)
    hf.save_pretrained(tmp_path)
    assert_same_logits(load(tmp_path), hf)


def test_dropout_falls_in_the_same_places(tmp_path):
    hf = random_gpt2()
    hf.save_pretrained(tmp_path)
    model, x = load(tmp_path).train(), torch.randint(97, (2, 32))
    torch.manual_seed(3)
    # Ours draws other masks, in less time.
    with kernels.using("plain"):
        ours = model.head.logits(model(x)[0])
    torch.manual_seed(3)
    theirs = hf.train()(x).logits
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_weights_in_parts_are_put_together(tmp_path):
    hf = random_gpt2()
    hf.save_pretrained(tmp_path, max_shard_size="50KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert_same_logits(load(tmp_path), hf)


def test_the_published_file_without_prefix_is_read(tmp_path):
    hf = random_gpt2()
    GPT2Model.save_pretrained(hf.transformer, tmp_path)
    assert_same_logits(load(tmp_path), hf)


def test_an_old_bin_file_is_read(tmp_path):
    hf = random_gpt2()
    hf.config.save_pretrained(tmp_path)
    torch.save(hf.state_dict(), tmp_path / "pytorch_model.bin")
    assert_same_logits(load(tmp_path), hf)


def test_a_bin_file_that_would_run_code_is_refused(tmp_path):
    random_gpt2().config.save_pretrained(tmp_path)
    torch.save({"wte.weight": print}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match="holds no readable tensors"):
        load_pretrained(str(tmp_path))


def test_a_truncated_file_is_named(tmp_path):
    random_gpt2().save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"model.safetensors holds no readable tensors"):
        load_pretrained(str(tmp_path))


def test_a_missing_weight_is_named(tmp_path):
    hf = random_gpt2()
    hf.config.save_pretrained(tmp_path)
    torch.save({"wte.weight": hf.transformer.wte.weight.detach()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"lacks the weight wpe.weight"):
        load_pretrained(str(tmp_path))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "bert"}, "has model_type=bert: of Hugging Face's models only gpt2, llama, qwen3 can"),
        ({"activation_function": "relu"}, "activation_function=relu"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx=True"),
    ],
)
def test_what_is_no_gpt2_is_refused(tmp_path, changes, message):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"} | changes))
    with pytest.raises(ValueError, match=message):
        load_pretrained(str(tmp_path))


def test_damaged_config_is_named(tmp_path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config.json is damaged"):
        load_pretrained(str(tmp_path))


def test_what_is_not_there_says_so(tmp_path):
    with pytest.raises(FileNotFoundError, match="is no directory"):
        load_pretrained(str(tmp_path / "missing"))
    with pytest.raises(FileNotFoundError, match=r"holds no config.json"):
        load_pretrained(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(FileNotFoundError, match=r"holds no pytorch_model.bin"):
        load_pretrained(str(tmp_path))


def test_a_name_without_network_says_what_to_do():
    with pytest.raises(FileNotFoundError, match=r"no-such-org/no-such-gpt2 is no directory here, .* run `hf download"):
        load_pretrained("no-such-org/no-such-gpt2")


def test_the_tokenizer_is_found(tmp_path):
    random_gpt2().save_pretrained(tmp_path)
    assert load_pretrained(str(tmp_path)).tokenizer is None
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / name).touch()
    assert load_pretrained(str(tmp_path)).tokenizer == tmp_path
    (tmp_path / "tokenizer.json").touch()
    assert load_pretrained(str(tmp_path)).tokenizer == tmp_path / "tokenizer.json"


def test_the_node_has_the_keys_of_the_option(tmp_path):
    random_gpt2().save_pretrained(tmp_path)
    conf = Path(__file__).parents[2] / "conf"
    with initialize_config_dir(str(conf), version_base=None):
        option = compose(overrides=["+model=gpt2"]).model
    node = load_pretrained(str(tmp_path)).node
    assert node.keys() == option.keys()
    assert node["head"] == option["head"]
