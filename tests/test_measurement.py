"""Stored runs measured again: adapted, mixed, kept and compared."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lmlab import measurement
from lmlab.config import compose, plain
from lmlab.evaluation import scores as kept_scores
from lmlab.evaluation.mixture import best_weight
from lmlab.experiment import train
from lmlab.measurement import Place, measure, scored
from lmlab.models import cross_entropy, kernels
from lmlab.runs import load, replicates, table

WANTED = plain(compose(config_name="evaluate"))
TEST = Place("test", None, None)


@pytest.fixture
def lstm(trained):
    return load(trained["lstm"])


def asked(**keys):
    return {**WANTED, "tune_tokens": 1_000, **keys}


def test_a_plain_measurement_is_results_json(lstm):
    found = measure(lstm, TEST, lstm.protocol, asked(), None)
    stored = lstm.results["splits"]["test"]
    assert found.likelihood.as_dict() | {"unknown": 0} == stored
    assert found.scores.likelihood().nats == pytest.approx(stored["nats"])
    assert not found.parts


def test_kept_scores_are_read_instead_of_measured_again(trained, tmp_path, monkeypatch):
    shutil.copytree(trained["lstm"], tmp_path / "run")
    run = load(tmp_path / "run")
    first = scored(run, TEST, run.protocol)
    measurement.keep(run, TEST, first.scores)
    assert (tmp_path / "run" / "scores.parquet").is_file()
    renamed = (tmp_path / "run").rename(tmp_path / "renamed")
    again = load(renamed)
    monkeypatch.setattr(measurement, "evaluate", lambda *_, **__: pytest.fail("measured again"))
    found = scored(again, TEST, again.protocol)
    assert found.scores.nats.tolist() == first.scores.nats.tolist()
    # Kept by an older version, they do not say what the tokenizer folds.
    path = renamed / "scores.parquet"
    older = kept_scores.read(path)
    kept_scores.write(replace(older, about={k: v for k, v in older.about.items() if k != "lossy_steps"}), path)
    assert scored(again, TEST, again.protocol).scores.about["lossy_steps"] == []
    # Of another protocol, split or weights they are not, nor where ours is to be checked by PyTorch's own.
    with pytest.raises(pytest.fail.Exception, match="measured again"):
        scored(load(renamed, kernels="plain"), TEST, again.protocol)
    with pytest.raises(pytest.fail.Exception, match="measured again"):
        scored(again, TEST, again.resolve(plain(compose(["evaluation=documents"]).evaluation)))
    (renamed / "checkpoints" / "best.ckpt").write_bytes((renamed / "checkpoints" / "last.ckpt").read_bytes())
    with pytest.raises(pytest.fail.Exception, match="measured again"):
        scored(load(renamed), TEST, again.protocol)


@pytest.mark.parametrize("family", ["lstm", "transformer"])
def test_plain_kernels_measure_and_score_the_same(family, trained, monkeypatch):
    monkeypatch.setattr(cross_entropy, "SMALL", 0)
    auto, plain = (load(trained[family], kernels=how) for how in kernels.KERNELS)
    expected = auto.evaluate().nats
    blocks = []
    monkeypatch.setattr(cross_entropy, "_blocks", lambda *_: blocks.append(kernels.are_plain()) or [])
    tempered = asked(temperature=2.0)
    found = [plain.evaluate(), scored(plain, TEST, plain.protocol).likelihood]
    assert [f.nats for f in found] == pytest.approx([expected] * 2, rel=1e-5)
    told = measure(plain, TEST, plain.protocol, tempered, None).likelihood.nats
    assert not blocks, "the plain path works out all logits at once"
    monkeypatch.undo()
    assert told == pytest.approx(measure(auto, TEST, auto.protocol, tempered, None).likelihood.nats, rel=1e-5)
    scores = (run.score("the cat sat.", top=0, eos=False).log_prob for run in (auto, plain))
    assert next(scores) == pytest.approx(next(scores), rel=1e-5)


def test_a_run_without_its_own_text_is_measured_on_other_text(small, tmp_path, monkeypatch):
    (tmp_path / "own.txt").write_text("the cat sat on the mat.\n" * 200)
    (tmp_path / "other.txt").write_text("a cat sat on a dog.\n" * 20)
    where = [f"corpus.train={tmp_path}/own.txt", f"cache_dir={tmp_path}/cache", f"run_dir={tmp_path}/run"]
    train(compose([*small["lstm"], *where]))
    shutil.rmtree(tmp_path / "cache")
    (tmp_path / "own.txt").unlink()
    run = load(tmp_path / "run")
    other = Place("test", plain(compose(["corpus=files", f"corpus.test={tmp_path}/other.txt"]).corpus), None)
    found = measure(run, other, run.protocol, asked(), None)
    assert found.likelihood.bytes == len("a cat sat on a dog.\n") * 20
    # What needs it says so before the work.
    monkeypatch.setattr(measurement, "evaluate", lambda *_, **__: pytest.fail("measured"))
    for wanted in ({"by": "position,frequency"}, {"scores": True}):
        with pytest.raises(FileNotFoundError, match=r"own\.txt"):
            measure(run, other, run.protocol, asked(**wanted), None)


@pytest.mark.parametrize(
    "wanted", [{"temperature": 0.0}, {"dynamic": {**WANTED["dynamic"], "lr": 1e-4}}, {"mix_weight": 2}]
)
def test_what_cannot_be_is_refused_before_anything_is_measured(wanted, lstm, monkeypatch):
    monkeypatch.setattr(measurement, "scored", lambda *_, **__: pytest.fail("measured"))
    with pytest.raises(ValueError, match=f"{next(iter(wanted))}.*(must be|add evaluation=carried)"):
        measure(lstm, TEST, lstm.protocol, asked(**wanted), (lstm, lstm.protocol))


def test_what_a_part_of_the_text_was_counted_in_is_that_part(small, tmp_path):
    runs = {}
    for share in (1.0, 0.25):
        train(compose([*small["ngram"], f"train_share={share}", f"run_dir={tmp_path}/{share}"]))
        runs[share] = load(tmp_path / str(share))
    whole, part = (measurement.train_counts(run) for run in runs.values())
    assert part.sum() == round(0.25 * whole.sum())
    whole, part = (run.results["training"]["tokens"] for run in runs.values())
    assert part == round(0.25 * whole)
    assert runs[0.25].results["splits"]["test"]["nats"] != runs[1.0].results["splits"]["test"]["nats"]


def test_a_split_that_a_text_lacks_is_refused_with_one_that_it_has(lstm, text_file):
    corpus = plain(compose(["corpus=files", f"corpus.test={text_file}"]).corpus)
    with pytest.raises(ValueError, match="split=val: this text has test; say split=test"):
        scored(lstm, Place("val", corpus, None), lstm.protocol)


def test_a_damaged_file_of_scores_is_measured_anew(trained, tmp_path):
    shutil.copytree(trained["lstm"], tmp_path / "run")
    (tmp_path / "run" / "scores.parquet").write_bytes(b"damaged")
    run = load(tmp_path / "run")
    assert measure(run, TEST, run.protocol, asked(), None).likelihood.nats == run.results["splits"]["test"]["nats"]


def test_dropout_averaged_over_one_pass_is_that_pass_and_over_more_is_better(lstm):
    def cost(samples, seed=0):
        wanted = asked(mc_dropout={"samples": samples, "seed": seed})
        return measure(lstm, TEST, lstm.protocol, wanted, None)

    one, four = cost(1), cost(4)
    assert one.likelihood.nats != lstm.results["splits"]["test"]["nats"]
    # Jensen: the mean of probabilities costs no more than the mean cost.
    singles = [scored_pass(lstm, seed) for seed in range(4)]
    by_hand = -np.logaddexp.reduce([-nats for nats in singles], axis=0) + np.log(4)
    np.testing.assert_allclose(four.scores.nats, by_hand, rtol=1e-5)
    assert four.likelihood.nats < np.mean([nats.sum() for nats in singles])
    assert cost(4).likelihood.nats == four.likelihood.nats
    assert four.protocol.options["mc_dropout"] == {"samples": 4, "seed": 0, "batch_size": 32}
    assert not lstm.model.training


def scored_pass(run, seed):
    wanted = asked(mc_dropout={"samples": 1, "seed": seed})
    return measure(run, TEST, run.protocol, wanted, None).scores.nats.astype(np.float64)


def test_a_model_without_dropout_has_none_to_average_over(trained):
    run = load(trained["transformer"])
    assert not any(getattr(m, "p", 0) for m in run.model.modules())
    with pytest.raises(ValueError, match="has no dropout to average over"):
        measure(run, TEST, run.protocol, asked(mc_dropout={"samples": 2, "seed": 0}), None)


def test_a_mixture_of_a_neural_and_an_n_gram_model_is_better_than_both(trained):
    run, other = load(trained["transformer"]), load(trained["ngram"])
    found = measure(run, TEST, run.protocol, asked(), (other, other.protocol))
    mix = found.protocol.options["mix"]
    ours, theirs = found.parts[run.path.name], found.parts[other.path.name]
    assert ours.nats == run.results["splits"]["test"]["nats"]
    assert theirs.nats == other.results["splits"]["test"]["nats"]
    assert 0 < mix["weight"] <= 1
    assert mix["tuned_on"] == "val:1000"
    assert found.likelihood.nats <= min(ours.nats, theirs.nats) * 1.001
    # By hand, from both runs' tokens.
    w = mix["weight"]
    p = [np.exp(-scored(r, TEST, r.protocol).scores.nats.astype(np.float64)) for r in (run, other)]
    assert found.likelihood.nats == pytest.approx(-np.log((1 - w) * p[0] + w * p[1]).sum(), rel=1e-5)


def test_a_weight_is_tuned_on_as_much_of_val_as_is_told_whatever_is_scored(trained, monkeypatch):
    run, other = load(trained["transformer"]), load(trained["ngram"])
    ours, theirs = (each.protocol.now(limit_tokens=20) for each in (run, other))
    sizes = []
    monkeypatch.setattr(measurement, "best_weight", lambda *nats: sizes.extend(map(len, nats)) or 0.5)
    found = measure(run, TEST, ours, asked(tune_tokens=50), (other, theirs))
    assert found.likelihood.tokens == 20
    assert found.protocol.options["mix"]["tuned_on"] == "val:50"
    assert sizes == [50, 50]


def test_a_stated_weight_of_nothing_is_the_run_itself(trained):
    run, other = load(trained["transformer"]), load(trained["ngram"])
    found = measure(run, TEST, run.protocol, asked(mix_weight=0.0), (other, other.protocol))
    assert found.likelihood.nats == pytest.approx(run.results["splits"]["test"]["nats"])
    assert "tuned_on" not in found.protocol.options["mix"]


def test_parts_of_a_mixture_whose_directories_have_one_name_are_both_told(trained, tmp_path):
    for family in ("transformer", "ngram"):
        shutil.copytree(trained[family], tmp_path / family / "000")
    run, other = load(tmp_path / "transformer" / "000"), load(tmp_path / "ngram" / "000")
    parts = measure(run, TEST, run.protocol, asked(mix_weight=0.5), (other, other.protocol)).parts
    assert [parts[str(each.path)].nats for each in (run, other)] == [
        each.results["splits"]["test"]["nats"] for each in (run, other)
    ]


def test_runs_over_other_tokens_are_no_mixture(trained, lstm):
    other = load(trained["ngram"])
    with pytest.raises(ValueError, match="reads other tokens"):
        measure(lstm, TEST, lstm.protocol, asked(mix_weight=0.5), (other, other.protocol))


def test_a_mixture_of_runs_of_two_texts_is_tuned_on_the_first_ones(small, tmp_path):
    texts = {"one": "the cat sat on the mat.\n" * 200, "two": "a dog, a bone; a bone, a dog!\n" * 150}
    for name, text in texts.items():
        (tmp_path / f"{name}.txt").write_text(text)
        where = [f"corpus.train={tmp_path}/{name}.txt", f"run_dir={tmp_path}/{name}", f"cache_dir={tmp_path}/cache"]
        # Bytes, that the two may be mixed at all; one counts, so that they differ.
        words = [*small["lstm"], "model.d_model=8"] if name == "one" else [*small["ngram"], "tokenizer=byte"]
        train(compose([w for w in words if not w.startswith("tokenizer.vocab_size")] + where))
    run, other = (load(tmp_path / name, cache_dir=tmp_path / "cache") for name in texts)
    corpus = plain(compose(["corpus=files", f"corpus.test={tmp_path}/two.txt"]).corpus)
    place = Place("test", corpus, None)
    found = measure(run, place, run.protocol, asked(tune_tokens=300), (other, other.protocol))
    # By hand: both read the first tokens of one's val.
    nats = [np.zeros(0)] * 2
    for i, each in enumerate((run, other)):
        nats[i] = scored(each, Place("val", run.config["corpus"], None), each.protocol, limit_tokens=300).scores.nats
    assert 0.01 < found.protocol.options["mix"]["weight"] < 0.99
    assert found.protocol.options["mix"]["weight"] == round(best_weight(*nats), 4)
    (tmp_path / "one.txt").write_text("no longer the text of the first run.\n" * 200)
    with pytest.raises(ValueError, match="on its val, where mix_weight=auto is found: give mix_weight="):
        measure(run, place, run.protocol, asked(tune_tokens=300), (other, other.protocol))
    (tmp_path / "one.txt").unlink()
    with pytest.raises(ValueError, match="or give mix_weight="):
        measure(run, place, run.protocol, asked(tune_tokens=300), (other, other.protocol))
    measure(run, place, run.protocol, asked(mix_weight=0.5), (other, other.protocol))


def test_dynamic_evaluation_of_a_run_puts_its_weights_back(lstm):
    one = lstm.resolve(plain(compose(["evaluation=carried", "evaluation.lanes=1"]).evaluation))
    wanted = asked(dynamic={"lr": 1e-3, "decay": 0.02, "segment": 10, "epsilon": 1e-3, "train_tokens": 2_000})
    found = measure(lstm, TEST, one, wanted, None)
    assert found.likelihood.nats != found.parts["as trained"].nats
    assert found.protocol.options["dynamic"]["lr"] == 1e-3
    assert lstm.evaluate("test").nats == lstm.results["splits"]["test"]["nats"]


def test_dynamic_evaluation_does_not_depend_on_the_batch_size(lstm):
    one = lstm.resolve(plain(compose(["evaluation=carried", "evaluation.lanes=1"]).evaluation))
    wanted = asked(dynamic={"lr": 1e-2, "decay": 0.02, "segment": 10, "epsilon": 1e-3, "train_tokens": 2_000})
    nats = [measure(lstm, Place("test", None, size), one, wanted, None).likelihood.nats for size in (None, 1, 3, 16)]
    assert nats == [nats[0]] * 4


def test_sides_are_configurations_and_seeds_their_runs(small, tmp_path):
    for seed, width in ((1, 8), (2, 8), (1, 12)):
        overrides = [f"run_dir={tmp_path}/runs/{width}-{seed}", f"seed={seed}", f"model.d_model={width}"]
        train(compose([*small["lstm"], *overrides]))
    runs = [load(path) for path in sorted((tmp_path / "runs").iterdir())]
    found = measurement.sides([("runs", run) for run in runs])
    assert [(name, len(members)) for name, _, members in found] == [
        ("runs model.d_model=12", 1),
        ("runs model.d_model=8", 2),
    ]
    assert found[0][1] != found[1][1]
    report = measurement.compared(
        found,
        Place("val", None, None),
        None,
        False,
        pairs="first",
        blocks="stream",
        block_bytes=15,
        confidence=0.95,
        resamples=200,
        seed=0,
    )
    assert [side["runs"] for side in report["sides"]] == [1, 2]
    assert report["comparisons"][0]["level"] == "configurations"
    assert report["protocols"][0]["name"] == "carried-16"
    assert set(report["floors"]) == {"unigram", "kneser_ney_5"}
    json.dumps(report)


def test_the_name_of_a_side_holds_as_many_settings_as_tell_it_from_the_others(small, trained, tmp_path):
    widths = [trained["lstm"], trained["transformer"], trained["ngram"], tmp_path / "wide"]
    train(compose([f"run_dir={widths[-1]}", *small["lstm"], "model.d_model=12"]))
    found = measurement.sides([("runs", load(path)) for path in widths])
    assert [name for name, *_ in found] == [
        "runs model=lstm model.d_model=16",
        "runs model=transformer",
        "runs model=ngram",
        "runs model=lstm model.d_model=12",
    ]


HOW = {"pairs": "first", "blocks": "stream", "block_bytes": 15, "confidence": 0.95, "resamples": 200, "seed": 0}


@pytest.fixture(scope="module")
def two_texts(small, tmp_path_factory):
    """Three runs: of one training text at two places with two seeds, and of another; the same val of all."""
    root = tmp_path_factory.mktemp("two_texts")
    lines = {"a": "the cat sat on the mat.\n", "b": "a dog, a bone; a bone!\n", "v": "the dog sat on a cat.\n"}
    for name, line in lines.items():
        (root / f"{name}.txt").write_text(line * 200)
    (root / "copied").mkdir()
    shutil.copy(root / "a.txt", root / "copied")
    for text, seed in (("a", 1), ("copied/a", 2), ("b", 1)):
        run = root / "runs" / f"{Path(text).name}{seed}"
        where = [f"corpus.train={root}/{text}.txt", f"corpus.val={root}/v.txt", f"run_dir={run}"]
        train(compose([*small["lstm"], *where, f"seed={seed}"]))
    return root / "runs"


def test_runs_of_two_training_texts_are_compared_on_their_one_val(two_texts, tmp_path):
    shutil.copytree(two_texts, tmp_path / "runs")
    groups = measurement.sides([(name, load(tmp_path / "runs" / name)) for name in ("a1", "b1")])
    val = Place("val", None, None)
    report = measurement.compared(groups, val, None, False, **HOW)
    assert report["comparisons"][0]["bpb"] != 0
    assert report["floors"] == {}, "those of one text are not the other's"
    # Scores that were kept before are still theirs, and are no others'.
    for *_, (run,) in groups:
        found = scored(run, val, run.protocol).scores
        measurement.keep(run, val, replace(found, about={k: v for k, v in found.about.items() if k != "split_text"}))
    assert measurement.compared(groups, val, None, False, **HOW) == report
    shutil.copy(tmp_path / "runs/a1/scores.val.parquet", tmp_path / "runs/b1/scores.val.parquet")
    assert measurement.compared(groups, val, None, False, **HOW) == report


def test_runs_of_two_training_texts_are_no_replicates(two_texts, tmp_path, caplog):
    runs = [load(two_texts / name) for name in ("a1", "a2", "b1")]
    text = plain(compose(["corpus=files", f"corpus.test={two_texts.parent}/v.txt"]).corpus)
    groups = measurement.sides([("one", runs[0]), ("other", runs[2])])
    told = measurement.compared(groups, Place("test", text, None), None, False, **HOW)["comparisons"][0]["words"]
    assert "One seed each" in told
    assert "one configuration" not in told
    # Of one directory they are two sides, named by the text.
    names = [f"all corpus.fingerprint={run.config['decided']['fingerprint'][:8]}" for run in runs[1:]]
    with caplog.at_level("INFO", "lmlab"):
        found = measurement.sides([("all", run) for run in runs])
    assert [(name, len(members)) for name, _, members in found] == [(names[0], 2), (names[1], 1)]
    assert "passed over" not in caplog.text
    # So they are in tables; one that has read no text yet tells none.
    shutil.copytree(two_texts, tmp_path / "runs")
    frame = table(tmp_path / "runs").set_index("run")
    assert frame["treatment"]["a1"] == frame["treatment"]["a2"] != frame["treatment"]["b1"]
    assert [f"all corpus.fingerprint={digits}" for digits in frame["corpus.fingerprint"]] == [names[0], *names]
    assert replicates(frame.reset_index())["n"].tolist() in ([1, 2], [2, 1])
    (tmp_path / "runs/b1/results.json").unlink()
    (tmp_path / "runs/b1/config.yaml").unlink()
    assert "corpus.fingerprint" not in table(tmp_path / "runs")


def test_copies_of_a_run_are_no_replicates(trained, tmp_path, caplog):
    for family in ("lstm", "transformer"):
        for name in ("one", "two"):
            shutil.copytree(trained[family], tmp_path / family / name)
    runs = [(family, load(tmp_path / family / name)) for family in ("lstm", "transformer") for name in ("one", "two")]
    with caplog.at_level("INFO", "lmlab"):
        found = measurement.sides(runs)
    assert [[run.path.name for run in members] for _, _, members in found] == [["one"], ["one"]]
    assert f"{tmp_path}/lstm/two: passed over, it is {tmp_path}/lstm/one again" in caplog.text
    one = plain(compose(["evaluation=documents"]).evaluation)
    report = measurement.compared(found, Place("val", None, None), one, True, **HOW)
    assert report["comparisons"][0]["level"] == "models"
    # Nor as two arguments beside a third, though by themselves they may be compared.
    found = measurement.sides([("a", runs[0][1]), ("b", runs[1][1]), ("c", runs[2][1])])
    report = measurement.compared(found, Place("val", None, None), one, True, **HOW)
    assert [c["seed_share"] for c in report["comparisons"]] == [None, None]


def test_the_weights_measured_are_named(lstm):
    about = scored(lstm, TEST, lstm.protocol).scores.about
    assert about["weights"] == measurement.weights_hash(lstm)
    assert about["format"] == kept_scores.FORMAT
