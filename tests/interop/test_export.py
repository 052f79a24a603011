"""What is exported is loaded by transformers: the same ids, the same log-probabilities."""

import json
import os
import resource
import weakref

import pytest
import torch
from tests.interop.test_llama import CONFIG, LLAMA
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

import lmlab
from lmlab.initial import read_initial
from lmlab.instantiate import instantiate
from lmlab.interop.export import FILES, export
from lmlab.interop.pretrained import load_pretrained
from lmlab.tokenizers import bpe, byte, char, load, unigram, word
from lmlab.tokenizers.pretrained import train as pretrained

TEXTS = [
    "the cat sat on the mat, it's good.",
    "  two  spaces\t\ta tab \n\n new lines\r\n \n",
    "明月几时有？把酒问青天。\n一二三　全角",
    "<eos> <unk> a<eos>b",
    "🙂 é e\u0301 \u00a0nbsp \u2028 \x1c",
    "",
]
TRAIN = [
    "the cat sat on the mat. the dog ate the cat's food, said it's good.\n" * 30 + "明月几时有？把酒问青天。\n" * 5
]
TOKENIZERS = {
    "bpe": lambda: bpe.train(TRAIN, vocab_size=300, min_frequency=2, sample_bytes=10**6),
    "unigram": lambda: unigram.train(TRAIN, 330, byte_fallback=True, character_coverage=1.0, sample_bytes=10**6),
    "unigram without bytes": lambda: unigram.train(TRAIN, 70, False, character_coverage=1.0, sample_bytes=10**6),
    "char": lambda: char.train(TRAIN, min_count=1),
    "byte": lambda: byte.train(TRAIN),
}
GPT2 = {
    "positions": "learned", "norm": "layer", "mlp": "gelu", "bias": True, "qk_norm": False, "n_kv_heads": None,
}  # fmt: skip
LAYOUTS = {
    "qwen3": {},
    "qwen3 untied": {"tie_embeddings": False, "d_ff": None},
    "llama": LLAMA,
    "llama of another base": LLAMA | {"rope_base": 500_000.0},
    "llama with biases": LLAMA | {"bias": True},
    "gpt2": GPT2,
    "gpt2 untied": GPT2 | {"tie_embeddings": False, "d_ff": None},
}
HEAD = {"_target_": "lmlab.models.head.LinearHead", "_partial_": True, "bias": False, "softcap": None}
TRANSFORMER = {"_target_": "lmlab.models.transformer.TransformerLM", "_partial_": True, "head": HEAD}
OWN = {key: value for key, value in CONFIG.items() if key != "vocab_size"}


def node(**changes):
    return TRANSFORMER | OWN | changes


def model(node, vocab_size=257):
    torch.manual_seed(0)
    made = instantiate(node)(vocab_size=vocab_size)
    for p in made.parameters():  # norms and biases too
        torch.nn.init.normal_(p, mean=float(p.ndim == 1), std=0.2)
    return made.eval()


def exported(path, node, tokenizer=None):
    tokenizer = tokenizer or byte.train([])
    made = model(node, tokenizer.vocab_size)
    export(path, node, made.state_dict(), tokenizer)
    return made


@torch.no_grad()
def log_probs(made, tokens):
    return torch.log_softmax(made.head.logits(made(tokens)[0]), -1)


@torch.no_grad()
def assert_same(made, path):
    theirs = AutoModelForCausalLM.from_pretrained(path).eval()
    tokens = torch.randint(257, (2, 50))
    torch.testing.assert_close(log_probs(made, tokens), theirs(tokens).logits.log_softmax(-1), atol=1e-5, rtol=1e-5)
    return theirs


@pytest.mark.parametrize("changes", LAYOUTS.values(), ids=LAYOUTS)
def test_transformers_gives_the_same_log_probabilities(changes, tmp_path):
    made = exported(tmp_path / "out", node(**changes))
    theirs = assert_same(made, tmp_path / "out")
    assert (theirs.config.bos_token_id, theirs.config.eos_token_id) == (256, 256)
    assert theirs.generation_config.eos_token_id == 256


@pytest.mark.parametrize("changes", LAYOUTS.values(), ids=LAYOUTS)
def test_out_and_in_again_is_the_same_model_and_tokenizer(changes, tmp_path):
    made = exported(tmp_path, node(**changes))
    back = load_pretrained(str(tmp_path))
    assert back.weights.keys() == made.state_dict().keys()
    assert all(torch.equal(back.weights[key], tensor) for key, tensor in made.state_dict().items())
    again = instantiate(back.node)(vocab_size=back.vocab_size)
    again.load_state_dict(back.weights)
    tokens = torch.randint(257, (2, 50))
    assert torch.equal(log_probs(again.eval(), tokens), log_probs(made, tokens))
    tokenizer = instantiate(read_initial(f"hf:{tmp_path}").tokenizer)(documents=())
    assert tokenizer.to_json() == byte.train([]).to_json()


def test_weights_are_given_away_and_read_again_for_who_asks_again(tmp_path):
    """Held all through a training they would be a second model in memory."""
    exported(tmp_path, node())
    initial = read_initial(f"hf:{tmp_path}")
    first = dict(initial.weights)
    alive = weakref.ref(next(iter(first.values())))
    again = initial.weights
    assert all(torch.equal(again[key], tensor) for key, tensor in first.items())
    del first
    assert alive() is None


@pytest.mark.parametrize("make", TOKENIZERS.values(), ids=TOKENIZERS)
def test_their_tokenizer_gives_our_ids_and_text(make, tmp_path):
    ours = make()
    exported(tmp_path, node(), ours)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert len(theirs) == ours.vocab_size
    assert (theirs.bos_token_id, theirs.eos_token_id) == (ours.start_id, ours.eos_id)
    for text in TEXTS:
        ids = ours.encode(text).ids.tolist()
        assert theirs(text)["input_ids"] == ids
        # What is unknown has its name there.
        assert theirs.decode(ids).replace("<unk>", "\ufffd") == ours.decode(ids).replace("<unk>", "\ufffd")


def test_a_strangers_tokenizer_goes_out_as_it_came(tmp_path):
    content = json.loads(TOKENIZERS["bpe"]().to_json())
    del content["model"]["lmlab"]
    (tmp_path / "theirs.json").write_text(json.dumps(content))
    ours = pretrained((), source=str(tmp_path / "theirs.json"), revision=None, eos_token=None, bos_token=None)
    exported(tmp_path / "out", node(), ours)
    theirs = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert all(theirs(text)["input_ids"] == ours.encode(text).ids.tolist() for text in TEXTS)
    assert load(tmp_path / "out" / "tokenizer.json").to_json() == ours.to_json()


def test_of_words_a_newline_is_the_eos_that_ends_no_text_and_a_line_says_so(tmp_path, caplog):
    ours = word.train(TRAIN, min_count=1, max_vocab=None)
    with caplog.at_level("INFO", "lmlab"):
        exported(tmp_path, node(), ours)
    assert "<eos> is its word tokenizer's newline" in caplog.text
    text = "the cat sat\n\non the unheard 明月几时有？把酒问青天。\n"
    assert AutoTokenizer.from_pretrained(tmp_path)(text)["input_ids"] == ours.encode(text).ids.tolist()
    assert "eos_token_id" not in json.loads((tmp_path / "generation_config.json").read_text())


def test_a_trained_run_scores_a_text_there_as_here(trained, tmp_path):
    run = lmlab.load(trained["transformer"])
    paths = run.export(tmp_path / "out")
    assert sorted(path.name for path in paths) == sorted(os.listdir(tmp_path / "out")) == sorted(FILES)
    assert AutoConfig.from_pretrained(tmp_path / "out").model_type == "qwen3"
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer("the cat's")["input_ids"]]])
    with torch.no_grad():
        found = theirs(ids).logits.log_softmax(-1)[0, :-1].gather(1, ids[0, 1:, None]).sum()
    assert found.item() == pytest.approx(run.score("the cat's").log_prob, abs=1e-4)


@pytest.mark.parametrize("family", ["lstm", "ngram"])
def test_a_model_that_transformers_lacks_is_refused(family, trained, tmp_path):
    with pytest.raises(ValueError, match="LM has no counterpart in transformers: of our models a TransformerLM has"):
        lmlab.load(trained[family]).export(tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"positions": "alibi"}, "positions=alibi cannot be expressed as Llama or Qwen3"),
        (LLAMA | {"d_model": 50, "d_head": 12}, "d_model=50 cannot be expressed as Llama's, a multiple of n_heads=4"),
        (GPT2 | {"norm": "rms"}, "norm=rms cannot be expressed as GPT-2's layers, which have norm=layer"),
        (GPT2 | {"n_kv_heads": 2}, "n_kv_heads=2 cannot be expressed as GPT-2's layers, which have n_kv_heads=4"),
        (GPT2 | {"d_model": 50, "d_head": 12}, "d_head=12 cannot be expressed as GPT-2's layers, .*d_head=12.5"),
        (GPT2 | {"d_head": 16}, "d_head=16 cannot be expressed as GPT-2's layers, which have d_head=12"),
        ({"head": HEAD | {"bias": True}}, "a head with a bias cannot be expressed as Llama or Qwen3"),
        ({"head": HEAD | {"softcap": 30.0}}, "softcap=30.0 cannot be expressed as Llama or Qwen3"),
        (
            {"head": {"_target_": "lmlab.models.head.MixtureHead", "_partial_": True, "n_experts": 2, "d_latent": None,
                      "dropout_latent": 0.0}},
            "a MixtureHead cannot be expressed as Llama or Qwen3: train with model/head=linear_no_bias",
        ),
    ],
)  # fmt: skip
def test_what_of_a_transformer_they_lack_is_named(changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        exported(tmp_path / "out", node(**changes))
    assert not list(tmp_path.iterdir())


def test_an_export_is_replaced_and_nothing_else_is(tmp_path):
    exported(tmp_path / "out", node())
    exported(tmp_path / "out", node(**LLAMA))
    assert AutoConfig.from_pretrained(tmp_path / "out").model_type == "llama"
    (tmp_path / "out" / "notes.txt").write_text("mine")
    for path in (tmp_path / "out", tmp_path):
        with pytest.raises(ValueError, match="is not empty and is no export of lmlab's; name another directory"):
            exported(path, node())
    with pytest.raises(ValueError, match=r"notes.txt is a file; name a directory"):
        exported(tmp_path / "out" / "notes.txt", node())
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ValueError, match="is no export"):
        exported(tmp_path / "theirs", node())


def test_what_transformers_has_saved_from_an_export_is_no_export(tmp_path):
    """A model that was trained on there: all files have our names, and config.json all that ours had."""
    exported(tmp_path / "out", node())
    AutoModelForCausalLM.from_pretrained(tmp_path / "out").save_pretrained(tmp_path / "tuned")
    AutoTokenizer.from_pretrained(tmp_path / "out").save_pretrained(tmp_path / "tuned")
    before = (tmp_path / "tuned/model.safetensors").read_bytes()
    with pytest.raises(ValueError, match="is no export of lmlab's"):
        exported(tmp_path / "tuned", node())
    assert (tmp_path / "tuned/model.safetensors").read_bytes() == before


def test_a_folder_that_cannot_be_replaced_is_named_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for out in (".", "/proc"):
        with pytest.raises(ValueError, match="cannot be replaced as a whole; name a directory in it"):
            exported(out, node())
    assert list(tmp_path.iterdir()) == []


def test_the_base_of_rotary_positions_is_told_in_the_words_of_transformers_4_too(tmp_path):
    exported(tmp_path / "out", node(rope_base=500_000.0))
    assert json.loads((tmp_path / "out/config.json").read_text())["rope_theta"] == 500_000.0


def test_a_disk_that_takes_no_more_leaves_what_was_there(tmp_path):
    exported(tmp_path / "out", node())
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
        for name in ("out", "new"):
            with pytest.raises(OSError, match=r"File too large: .*safetensors"):
                exported(tmp_path / name, node(**LLAMA))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    assert os.listdir(tmp_path) == ["out"]


def test_whoever_may_read_one_file_may_read_all(tmp_path):
    exported(tmp_path, node())
    assert len({path.stat().st_mode for path in tmp_path.iterdir()}) == 1
