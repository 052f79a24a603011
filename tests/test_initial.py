"""Starting from another run's weights."""

import json
import shutil

import pytest
import torch
import yaml
from transformers import GPT2Config, GPT2LMHeadModel

import tokenizers
from lmlab.config import asked, compose, with_budget
from lmlab.experiment import train
from lmlab.initial import read_initial, with_initial
from lmlab.run_directory import RunDirectory
from lmlab.runs import table
from lmlab.seal import seal, unseal
from lmlab.sweeps.composer import Composer
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


def test_a_run_is_listed_and_named_as_what_it_starts_from(small, trained, tmp_path):
    results = started(small, trained, "null", f"runs_root={tmp_path}", "trainer.max_steps=1", "seed=7")
    assert results["run_dir"].endswith("_files_pretrained_lstm_seed7")
    (row,) = table(tmp_path).to_dict("records")
    assert row["model"] == "LSTMLM"
    run = RunDirectory(results["run_dir"])
    assert run.written()["model"] == run.config()["model"]
    assert run.written()["model"]["d_model"] == 16


@pytest.mark.parametrize("make", [compose, Composer(None)], ids=["lmlab train", "a sweep's trial"])
def test_dropout_typed_beside_the_weights_takes_effect(small, trained, make):
    def model(*overrides: str):
        return with_initial(make([f"init_from={trained['transformer']}", *overrides]))[0].model

    have = RunDirectory(trained["transformer"]).config()["model"]
    assert dict(model()) == have
    # The option has them follow model.dropout, and 0 is its own value: that it was typed counts.
    rates = {"dropout": 0.1, "dropout_embed": 0.1, "dropout_attention": 0.3}
    assert dict(model("model.dropout=0.1", "model.dropout_attention=0.3")) == have | rates
    assert dict(model("model=gpt2", "model.dropout=0.2"))["dropout_embed"] == 0.2
    dropping = {"lstm": trained["lstm"]}
    for rate, told in (("0", 0), ("0.5", 0.5)):
        words = [f"init_from={dropping['lstm']}", "model=lstm", f"model.dropout_in={rate}"]
        node = with_initial(make(words))[0].model
        assert (node.dropout_in, node.dropout_out, node.d_model) == (told, 0.1, 16)


def test_a_rate_that_was_typed_trains(small, trained, tmp_path):
    plain = started(small, trained, tmp_path / "plain", "trainer.max_steps=2")
    words = ["trainer.max_steps=2", "model=lstm", "model.dropout_in=0.9"]
    dropping = started(small, trained, tmp_path / "dropping", *words)
    assert dropping["training"]["first_loss"] != plain["training"]["first_loss"]
    assert started(small, trained, tmp_path / "dropping", *words)["training"] == dropping["training"]
    assert table(tmp_path)["treatment"].nunique() == 2
    with pytest.raises(ValueError, match="is another run"):
        started(small, trained, tmp_path / "dropping", *words[:2], "model.dropout_in=0.8")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["model.d_model=32"], r"model\.d_model=32 with init_from=.*, whose weights have 16: leave model\.d_model out"),
        (["model=lstm"], "model=lstm with init_from=.*, whose weights are of transformer: leave model out"),
        (["model/head=mixture"], "model/head=mixture with init_from=.* are of linear: leave model/head out"),
        (["model={n_layers: 2}"], r"model\.n_layers=2 with init_from=.* have 1"),
        (["tokenizer=byte"], "tokenizer=byte with init_from=.* are of bpe"),
        # Of an option below the model all that it says was typed.
        (["model/head=linear"], r"model\.head\.bias=True with init_from=.* have False"),
        (["tokenizer.vocab_size=400"], r"tokenizer\.vocab_size=400 with init_from=.* have 300"),
    ],
)
def test_what_else_was_typed_of_model_or_tokenizer_is_refused_where_it_differs(trained, tmp_path, words, told):
    source = f"init_from={trained['transformer']}"
    with pytest.raises(ValueError, match=told):
        train(compose([source, f"run_dir={tmp_path / 'run'}", *words]))
    with pytest.raises(ValueError, match=r"model\.dropout=0\.1 with init_from=.* have no such key: leave"):
        train(compose([f"init_from={trained['lstm']}", f"run_dir={tmp_path / 'run'}", "model.dropout=0.1"]))
    assert not (tmp_path / "run").exists()


def test_what_was_typed_and_is_so_is_accepted_and_a_recipes_model_gives_way(trained):
    have = RunDirectory(trained["transformer"]).config()["model"]
    same = ["tokenizer=bpe", "tokenizer.vocab_size=300", "model.d_model=16", "model.max_context=16"]
    for words in (same, ["experiment=tutorial_lstm"]):
        assert dict(with_initial(compose([f"init_from={trained['transformer']}", *words]))[0].model) == have


def test_a_run_of_an_older_version_goes_on_by_its_own_command(small, trained, tmp_path):
    words = ["trainer.max_steps=2", "model=lstm", "model.d_model=99", "model.dropout_in=0.9"]
    started(small, trained, tmp_path / "run", "trainer.max_steps=1")
    run = RunDirectory(tmp_path / "run")
    # It wrote down what it then passed over.
    overrides = [o for o in small["lstm"] if not o.startswith(("tokenizer", "model"))]
    before = compose([f"init_from={trained['lstm']}", *overrides, *words, "trainer.max_steps=1"])
    run.write_yaml("asked.yaml", asked(with_budget(before)))
    (row,) = table(tmp_path).to_dict("records")
    assert (row["model"], run.asked()["model"]["d_model"]) == ("LSTMLM", 16)
    assert started(small, trained, tmp_path / "run", *words)["training"]["steps"] == 2
    assert run.config()["model"]["dropout_in"] == 0.1


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
