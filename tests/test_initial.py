"""Starting from another run's weights."""

import json
import shutil

import pytest
import torch
import yaml
from transformers import GPT2Config, GPT2LMHeadModel

import tokenizers
from lmlab.config import compose
from lmlab.experiment import train
from lmlab.initial import read_initial
from lmlab.seal import seal, unseal
from lmlab.training.checkpoints import read, weights


def started(small, trained, path, *more: str):
    overrides = [o for o in small["lstm"] if not o.startswith(("tokenizer", "model"))]
    return train(compose([f"run_dir={path}", f"init_from={trained['lstm']}", *overrides, *more]))


def test_a_run_starts_from_anothers_model_tokenizer_and_weights(small, trained, tmp_path):
    results = started(small, trained, tmp_path / "run", "optimizer.lr=0.0", "optimizer.weight_decay=0.0")
    before = json.loads((trained["lstm"] / "results.json").read_text())
    assert results["splits"]["test"]["nats"] == pytest.approx(before["splits"]["test"]["nats"])
    ours, theirs = (weights(read(p / "checkpoints" / "best.ckpt")) for p in (tmp_path / "run", trained["lstm"]))
    assert all((ours[name] == theirs[name]).all() for name in theirs)
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert config["model"]["d_model"] == 16


def test_a_run_that_has_begun_goes_on_without_its_source(small, trained, tmp_path):
    shutil.copytree(trained["lstm"], tmp_path / "source")
    source = {"lstm": tmp_path / "source"}
    whole = started(small, source, tmp_path / "whole", "trainer.max_steps=4")
    started(small, source, tmp_path / "run", "trainer.max_steps=2")
    shutil.rmtree(tmp_path / "source")
    longer = started(small, source, tmp_path / "run", "trainer.max_steps=4")
    assert longer["splits"]["test"]["nats"] == pytest.approx(whole["splits"]["test"]["nats"], rel=1e-6)
    with pytest.raises(FileNotFoundError, match="source is no run"):
        started(small, source, tmp_path / "other", "trainer.max_steps=2")


def test_the_tokenizer_is_the_other_runs(small, trained, tmp_path):
    from lmlab.runs import load

    started(small, trained, tmp_path / "run", "trainer.max_steps=1")
    ours, theirs = load(tmp_path / "run").tokenizer, load(trained["lstm"]).tokenizer
    text = "the cat 第一"
    assert ours.encode(text).ids.tolist() == theirs.encode(text).ids.tolist()


def test_a_run_on_words_passes_its_words_on_to_other_text(small, tmp_path):
    words = ["tokenizer=word", *(o for o in small["lstm"] if not o.startswith("tokenizer"))]
    train(compose([f"run_dir={tmp_path / 'first'}", *words]))
    (tmp_path / "t.txt").write_text("the dog sat on a log.\n" * 150 + "the cat ate the cat's food.\n" * 10)
    other = [o for o in small["lstm"] if not o.startswith(("tokenizer", "model", "corpus.train"))]
    other += [f"init_from={tmp_path / 'first'}", f"corpus.train={tmp_path / 't.txt'}"]
    results = train(compose([f"run_dir={tmp_path / 'second'}", *other]))
    first, second = (tmp_path / name / "tokenizer.json" for name in ("first", "second"))
    assert first.read_bytes() == second.read_bytes()
    # "cat's", of held-out text alone, was known before: it was not looked up there.
    assert results["audit"]["checks"]["vocabulary"]["passed"] is None


def saved_gpt2(path, rows: int, tokens: int) -> None:
    """A GPT-2 of that many rows beside a byte-level tokenizer of that many tokens, as Hugging Face saves them."""
    torch.manual_seed(0)
    GPT2LMHeadModel(GPT2Config(vocab_size=rows, n_embd=16, n_layer=1, n_head=2, n_positions=32)).save_pretrained(path)
    save_tokenizer(path, tokens)


def save_tokenizer(path, tokens: int) -> None:
    """A byte-level one of that many tokens, as Hugging Face saves it."""
    other = tokenizers.Tokenizer(tokenizers.models.BPE())
    other.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    other.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=tokens, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False
    )
    other.train_from_iterator(["the cat sat on the mat and said"], trainer)
    assert other.get_vocab_size() == tokens
    other.save(str(path / "tokenizer.json"))


def from_gpt2(small, path, *more: str):
    left_out = ("tokenizer", "model", "batching")
    overrides = [o for o in small["transformer"] if not o.startswith(left_out)]
    overrides += ["batching=windows", "batching.batch_size=2", "batching.seq_len=16"]
    return train(compose([f"init_from=hf:{path}", f"run_dir={path / 'run'}", *overrides, *more]))


def test_weights_with_more_rows_than_tokens_train_are_loaded_and_passed_on(small, tmp_path):
    import lmlab

    saved_gpt2(tmp_path, rows=320, tokens=260)
    results = from_gpt2(small, tmp_path)
    hf = GPT2LMHeadModel.from_pretrained(tmp_path)
    assert results["model"]["parameters"] == sum(p.numel() for p in hf.parameters())
    run = lmlab.load(tmp_path / "run")
    assert (run.model.vocab_size, run.tokenizer.vocab_size) == (320, 260)
    assert run.evaluate(split="val").as_dict() | {"unknown": 0} == run.results["splits"]["val"]
    (sample,) = run.generate("the cat", max_new_tokens=20, temperature=5.0)
    assert max(sample.ids) < 260
    assert run.score("the cat").log_prob < 0
    again = read_initial(str(tmp_path / "run"))
    assert (again.vocab_size, len(again.weights["embed.weight"])) == (320, 320)
    for file in ("config.json", "model.safetensors", "tokenizer.json"):
        (tmp_path / file).unlink()
    longer = from_gpt2(small, tmp_path, f"trainer.max_steps={results['training']['steps'] + 1}")
    assert longer["training"]["steps"] == results["training"]["steps"] + 1


def test_weights_with_fewer_rows_than_tokens_are_refused_with_both_numbers(small, tmp_path):
    saved_gpt2(tmp_path, rows=258, tokens=260)
    with pytest.raises(ValueError, match="its tokenizer has 260 tokens and its weights rows for 258"):
        from_gpt2(small, tmp_path)
    assert not (tmp_path / "run").exists()


def test_a_model_that_counts_is_nothing_to_begin_from(small, trained, tmp_path):
    overrides = [o for o in small["ngram"] if not o.startswith(("tokenizer", "model"))]
    with pytest.raises(ValueError, match="is a model that counts"):
        train(compose([f"run_dir={tmp_path / 'run'}", f"init_from={trained['ngram']}", *overrides]))
    assert not (tmp_path / "run").exists()


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="is no run"):
        read_initial(str(tmp_path))
    with pytest.raises((FileNotFoundError, ValueError), match="nowhere"):
        read_initial(f"hf:{tmp_path / 'nowhere'}")


def test_a_run_of_somebodys_class_needs_leave(trained, tmp_path):
    shutil.copytree(trained["lstm"], tmp_path / "run")
    path = tmp_path / "run" / "config.yaml"
    path.write_text(seal(unseal(path.read_text()).replace("lmlab.models.lstm.LSTMLM", "mine.LM")))
    with pytest.raises(PermissionError, match=r"mine\.LM"):
        read_initial(str(tmp_path / "run"))
    assert read_initial(str(tmp_path / "run"), ["mine.LM"]).node["_target_"] == "mine.LM"
