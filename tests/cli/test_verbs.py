"""The verbs on finished tiny runs, as a person would call them, and what a mistake gets."""

import json
import shutil

import pytest

import tokenizers
from lmlab.cli import main
from lmlab.tokenizers import bytelevel

FAMILIES = ("lstm", "transformer", "ngram")


def call(capsys, *arguments) -> str:
    assert main([str(a) for a in arguments]) == 0
    return capsys.readouterr().out


def refused(capsys, *arguments) -> str:
    """The one line on standard error of a call that must exit with 2."""
    capsys.readouterr()
    assert main([str(a) for a in arguments]) == 2
    shown = capsys.readouterr()
    assert shown.err.count("\n") == 1
    assert shown.err.startswith("lmlab: ")
    return shown.err


# evaluate


@pytest.mark.parametrize("family", FAMILIES)
def test_evaluate_gives_the_numbers_of_results_json_exactly(family: str, trained, capsys):
    stored = json.loads((trained[family] / "results.json").read_text())
    for split in ("val", "test"):
        told = json.loads(call(capsys, "evaluate", f"run_dir={trained[family]}", f"split={split}", "format=json"))
        floors = told.pop("floors")
        assert told == {"protocol": stored["protocol"], split: stored["splits"][split]}
        assert set(floors) == {"unigram", "kneser_ney_5"}


@pytest.mark.parametrize("family", FAMILIES)
def test_evaluate_measures_any_text_under_the_runs_tokenizer(family: str, trained, text_file, capsys):
    corpus = ["corpus=files", f"corpus.test={text_file}"]
    assert main(["evaluate", f"run_dir={trained[family]}", *corpus]) == 0
    assert capsys.readouterr().err.splitlines()[0].startswith("floors are of the run's own text")
    told = json.loads(call(capsys, "evaluate", f"run_dir={trained[family]}", *corpus, "format=json"))
    assert told["test"]["bytes"] == text_file.stat().st_size


def test_evaluate_under_another_protocol_says_so(trained, capsys):
    told = call(capsys, "evaluate", f"run_dir={trained['transformer']}", "evaluation=documents", "evaluation.stride=3")
    assert "each document alone" in told
    assert "stride 3" in told


def test_evaluate_breaks_down_keeps_scores_and_mixes(trained, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(trained["transformer"], run)
    told = call(capsys, "evaluate", f"run_dir={run}", "by=position,frequency", "scores=true")
    assert "by position" in told
    assert "times in train" in told
    assert (run / "scores.parquet").is_file()
    told = json.loads(call(capsys, "evaluate", f"run_dir={run}", "by=document", "format=json", "floors=false"))
    assert sum(row["tokens"] for row in told["by"]["document"]) == told["test"]["tokens"]
    mixed = call(capsys, "evaluate", f"run_dir={run}", f"mix={trained['ngram']}", "mix_weight=0.5")
    assert "test + mix" in mixed
    assert "weight=0.5" in mixed


def test_lanes_are_for_whichever_run_of_a_mixture_has_them(trained, capsys):
    sliding, carried = f"run_dir={trained['transformer']}", f"mix={trained['ngram']}"
    more = ["mix_weight=1", "floors=false", "format=json"]
    one, four = (json.loads(call(capsys, "evaluate", sliding, carried, f"evaluation.lanes={n}", *more)) for n in (1, 4))
    assert one["test"]["nll"] != four["test"]["nll"]
    alone, mixed = ["evaluate", sliding], ["evaluate", sliding, f"mix={trained['transformer']}"]
    for words in (alone, mixed):
        told = refused(capsys, *words, "evaluation.lanes=1")
        assert "evaluation.lanes=1 does nothing under sliding-16/8: add evaluation=carried" in told


def test_evaluate_tells_the_loss_by_what_documents_of_ones_own_say_of_themselves(trained, tmp_path, capsys):
    rows = [{"text": "the cat sat", "year": 1850}, {"text": "a dog", "year": 1790}, {"text": "the cat", "year": 1850}]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    where = ["corpus=files", f"corpus.test={tmp_path / 'rows.jsonl'}", f"cache_dir={tmp_path / 'cache'}"]
    asked = ["evaluate", f"run_dir={trained['lstm']}", *where, "corpus.meta_fields=[year]", "by=year", "format=json"]
    told = json.loads(call(capsys, *asked, "floors=false"))
    assert [(row["group"], row["bytes"]) for row in told["by"]["year"]] == [("1790", 5), ("1850", 18)]


def test_evaluate_adapts_and_says_with_what(trained, capsys):
    where = [f"run_dir={trained['lstm']}", "evaluation=carried", "evaluation.lanes=1", "tune_tokens=1000"]
    told = call(capsys, "evaluate", *where, "temperature=auto", "cache.size=50", "dynamic.lr=1e-4")
    assert "test + temperature + cache + dynamic" in told
    assert "as trained" in told
    assert "tuned_on=val:1000" in told


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["dynamic.lr=0.1"], "evaluation.lanes=1"),
        (["cache.size=0"], "cache.size=0 must be at least 1"),
        (["by=yaer"], "position, frequency, document"),
        (["temperature=warm"], "temperature=warm must be"),
        (["mix_weight=2", "mix=RUN"], "mix_weight=2"),
    ],
)
def test_evaluate_refuses_what_it_cannot_do(words, message, trained, capsys):
    words = [word.replace("RUN", str(trained["lstm"])) for word in words]
    assert message in refused(capsys, "evaluate", f"run_dir={trained['lstm']}", *words)


# compare


def test_train_evaluate_and_compare_tell_unknown_words_that_cost_only_their_token(small, tmp_path, capsys):
    kept = [o for o in small["ngram"] if not o.startswith(("tokenizer", "corpus.train="))]
    for split, text in (("train", "the cat sat\n" * 60), ("val", "a dog sat\n" * 20), ("test", "the dog sat\n" * 20)):
        (tmp_path / f"{split}.txt").write_text(text)
        kept.append(f"corpus.{split}={tmp_path / split}.txt")
    made = [f"run_dir={tmp_path}/runs/2", *kept, "tokenizer=word", "tokenizer.min_count=1"]
    more = "that cost no more than the token (evaluation.unknown=spelled charges their letters)"
    shown = call(capsys, "train", *made, f"run_dir={tmp_path}/runs/3")
    assert f"; 40 <unk> of val, 20 <unk> of test {more}\n" in shown
    assert f"; 20 <unk> {more}\n" in call(capsys, "evaluate", f"run_dir={tmp_path}/runs/3")
    # As it says, and as it may be said in full.
    evaluate = ["evaluate", f"run_dir={tmp_path}/runs/3"]
    shown = call(capsys, *evaluate, "evaluation.unknown=spelled")
    assert ", <unk> spelled out (protocol 2)\n" in shown
    assert shown == call(capsys, *evaluate, "evaluation=auto", "evaluation.unknown=spelled")
    call(capsys, "train", *made, "model.order=2")
    sides = [tmp_path / "runs/3", tmp_path / "runs/2"]
    how = ["split=val", "block_bytes=10"]
    assert f"; 40 <unk> {more}\n" in call(capsys, "compare", *sides, *how)
    assert "<unk> spelled out" in call(capsys, "compare", *sides, *how, "evaluation.unknown=spelled")


def test_compare_says_in_words_what_is_real(trained, capsys):
    sides = [trained["transformer"], trained["ngram"]]
    how = ["own_protocols=true", "block_bytes=10"]
    told = call(capsys, "compare", *sides, *how)
    assert " than " in told or "not distinguishable" in told
    assert "95% interval" in told
    told = json.loads(call(capsys, "compare", *sides, *how, "format=json"))
    assert [side["runs"] for side in told["sides"]] == [1, 1]
    low, high = told["comparisons"][0]["bpb_interval"]
    assert low <= told["comparisons"][0]["bpb"] <= high


def test_compare_says_which_tokenizer_folds_text(trained, small, tmp_path, capsys):
    folding = tokenizers.Tokenizer(tokenizers.models.BPE({c: i for i, c in enumerate(bytelevel.CHARACTERS)}, []))
    folding.normalizer = tokenizers.normalizers.Lowercase()
    folding.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    folding.decoder = tokenizers.decoders.ByteLevel()
    folding.add_special_tokens(["<eos>"])
    folding.save(str(tmp_path / "folding.json"))
    kept = [o for o in small["ngram"] if not o.startswith("tokenizer")]
    made = [f"run_dir={tmp_path}/run", "tokenizer=pretrained", f"tokenizer.source={tmp_path}/folding.json"]
    call(capsys, "train", *kept, *made)
    how = [trained["ngram"], tmp_path / "run", "split=val", "block_bytes=10"]
    said = f"\n{tmp_path}/run has a tokenizer that changes or drops text (Lowercase): case, accents or white space"
    assert said in call(capsys, "compare", *how)
    assert json.loads(call(capsys, "compare", *how, "format=json"))["notes"][0] in call(capsys, "compare", *how)
    same = [trained["ngram"], trained["transformer"], "own_protocols=true", "split=val", "block_bytes=10"]
    assert "changes or drops" not in call(capsys, "compare", *same)


def test_null_chooses_the_runs_own_text_and_protocol_as_leaving_them_out_does(trained, capsys):
    nothing = ["corpus=null", "evaluation=null"]
    for run in (trained["lstm"], trained["transformer"]):
        evaluate = ["evaluate", f"run_dir={run}", "floors=false"]
        assert call(capsys, *evaluate, *nothing) == call(capsys, *evaluate)
    how = [trained["lstm"], trained["ngram"], "split=val", "block_bytes=10"]
    assert call(capsys, "compare", *how, *nothing) == call(capsys, "compare", *how)


def test_a_key_of_no_chosen_evaluation_changes_the_runs_own(trained, capsys):
    def protocol(family, *words):
        told = call(capsys, "evaluate", f"run_dir={trained[family]}", "format=json", "floors=false", *words)
        return json.loads(told)["protocol"]

    own = {family: protocol(family) for family in ("lstm", "transformer")}
    limited = protocol("lstm", "evaluation.limit_tokens=50")
    assert limited == own["lstm"] | {"limit_tokens": 50, "name": "carried-16-first50"}
    assert protocol("transformer", "evaluation.stride=3") == own["transformer"] | {
        "stride": 3,
        "name": "sliding-16/3",
    }
    assert protocol("transformer", "evaluation.max_context=4")["name"] == "sliding-4/2"
    run = f"run_dir={trained['lstm']}"
    assert "evaluation.max_context=4 needs evaluation=sliding" in refused(
        capsys, "evaluate", run, "evaluation.max_context=4"
    )
    assert "did you mean evaluation.unknown?" in refused(capsys, "evaluate", run, "evaluation.unknwn=spelled")
    assert "evaluation.limit_tokens=few" in refused(capsys, "evaluate", run, "evaluation.limit_tokens=few")


def test_compare_says_which_side_sees_how_far(trained, capsys):
    sides = [trained["lstm"], trained["ngram"]]
    how = ["split=val", "block_bytes=10"]
    shown = call(capsys, "compare", *sides, *how)
    assert f"\n{sides[0]}: measured carried through 16 lanes, unbounded context, precision 32" in shown
    assert f"\n{sides[1]}: measured carried through 16 lanes, context of 2 tokens, precision 32" in shown
    told = json.loads(call(capsys, "compare", *sides, *how, "format=json"))
    assert [p["max_context"] for p in told["protocols"]] == [None, 2]
    assert [side["protocol"]["max_context"] for side in told["sides"]] == [None, 2]


def test_what_compare_advises_of_two_protocols_it_takes(trained, capsys):
    how = ["split=val", "block_bytes=10"]
    for families, context in ((("lstm", "transformer"), 16), (("transformer", "ngram", "lstm"), 2)):
        sides = [trained[family] for family in families]
        for asked in ([], ["evaluation=documents"]):
            told = refused(capsys, "compare", *sides, *how, *asked)
            advised = f"evaluation=sliding evaluation.max_context={context}"
            assert f"put both under one, as with {advised}, or" in told
            assert "measured sliding windows" in call(capsys, "compare", *sides, *how, *advised.split())


def test_compare_refuses_two_protocols_one_run_and_none(trained, tmp_path, capsys):
    assert "two protocols (policy: sliding against carried" in refused(
        capsys, "compare", trained["transformer"], trained["ngram"]
    )
    assert "two runs or more" in refused(capsys, "compare", trained["lstm"])
    assert "has no runs" in refused(capsys, "compare", trained["lstm"], tmp_path)


def test_evaluate_refuses_text_that_changed_since_training(small, tmp_path, capsys):
    text = tmp_path / "own.txt"
    text.write_text("a b c d e f g.\n" * 200)
    where = [f"corpus.train={text}", f"cache_dir={tmp_path / 'cache'}", f"run_dir={tmp_path / 'run'}"]
    call(capsys, "train", *small["ngram"], *where)
    text.write_text("quite another text.\n" * 200)
    shutil.rmtree(tmp_path / "cache")
    capsys.readouterr()
    assert main(["evaluate", f"run_dir={tmp_path / 'run'}"]) == 2
    assert "has changed" in capsys.readouterr().err


# score


def test_prepare_reports_and_the_cache_is_listed_and_pruned(text_file, tmp_path, capsys):
    where = f"cache_dir={tmp_path / 'c d'}"
    corpus = ["corpus=files", f"corpus.train={text_file}", "tokenizer=char", where]
    report = json.loads(call(capsys, "prepare", *corpus, "format=json"))
    assert sum(split["bytes"] for split in report["splits"].values()) == text_file.stat().st_size
    assert "bytes/token" in call(capsys, "prepare", *corpus)
    assert "char" in call(capsys, "prepare", "cache=list", where)
    [entry] = json.loads(call(capsys, "prepare", "cache=list", where, "format=json"))
    assert entry["path"] == report["path"]
    assert entry["used"].endswith("+00:00")
    assert main(["prepare", "cache=list", f"cache_dir={tmp_path}/nope"]) == 0
    assert capsys.readouterr().err == f"there is no cache at {tmp_path}/nope: lmlab prepare makes one\n"
    assert "removed 0" in call(capsys, "prepare", "cache=prune", where)
    assert "removed 1" in call(capsys, "prepare", "cache=prune", "unused_days=0", where)


FASTEST = ("sort=tokens_per_s", "format=json")


def test_runs_are_listed_best_first(trained, capsys):
    root = trained["lstm"].parent
    told = json.loads(call(capsys, "runs", f"root={root}", "format=json"))
    assert [run["run"] for run in told] == ["ngram", "transformer", "lstm"]
    assert [run["val/bpb"] for run in told] == sorted(run["val/bpb"] for run in told)
    assert call(capsys, "runs", f"root={root}", "format=csv").count("\n") == 4
    assert call(capsys, "runs", f"root={root}", "columns=[run,steps]", "sort=steps").split()[:4] == [
        "run",
        "steps",
        "ngram",
        "1",
    ]
    assert call(capsys, "runs", f"root={root}", "columns=[run,run]").split() == ["run", "ngram", "transformer", "lstm"]
    assert call(capsys, "runs", f"root={root}", "columns=[run,run]", "format=csv").split()[:2] == ["run", "ngram"]
    rates = [run.get("tokens_per_s") or 0 for run in json.loads(call(capsys, "runs", f"root={root}", *FASTEST))]
    assert rates == sorted(rates, reverse=True)
    told = call(capsys, "runs", f"root={root}")
    assert "more columns" in told
    # Two protocols: no two numbers of theirs in one table.
    carried, sliding = told.split("\nsliding-16/8\n")
    assert "lstm" in carried
    assert "transformer" not in carried
    assert "transformer" in sliding
    assert "2 protocols, whose numbers are not comparable" in sliding


def test_prune_says_before_it_does(trained, tmp_path, capsys):
    shutil.copytree(trained["lstm"], tmp_path / "run")
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    told = call(capsys, "runs", "prune", f"root={tmp_path}")
    assert str(last) in told
    for words in (["prune", tmp_path], [tmp_path, "prune"], [f"root={tmp_path}", "prune"]):
        assert call(capsys, "runs", *words) == told
    assert last.exists()
    call(capsys, "runs", "prune", f"root={tmp_path}", "yes=true")
    assert not last.exists()
    call(capsys, "evaluate", f"run_dir={tmp_path / 'run'}")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("evaluate split=foo", "split=foo must be one of train, val, test"),
        ("evaluate corpus=fles", "did you mean files?"),
        ("evaluate corpus=files", "corpus.train="),
        ("evaluate corpus=files corpus.test=/nope", "corpus.test=/nope does not exist"),
        ("evaluate evaluation=foo", "there are auto, carried, documents, sliding"),
        ("evaluate evaluation.policy=carried", "evaluation=sliding have it, none of which is chosen"),
        ("evaluate batch_size=0", "batch_size=0"),
        ("score text=a kernels=fast", "kernels=fast must be one of auto, plain"),
        ("evaluate format=foo", "format=foo"),
        ("evaluate checkpoint=foo", "checkpoint=foo must be one of best, last"),
        ("score", "text=... and file=..."),
        ("score text=a top=x", "top=x must be a whole number"),
        ("score file=/nope", "/nope is no file"),
        ("generate temperature=-1", "temperature=-1"),
        ("generate promt=x", "did you mean prompt?"),
        ("generate +foo=1", "no key 'foo'"),
        ("generate num_samples=2.5", "num_samples=2.5 must be a whole number"),
        ("generate num_beams=4 temperature=1", "temperature=0"),
        ("generate device=foo", "device=foo"),
        ("generate precision=16", "precision=16 must be one of 32, bf16-mixed"),
        ("generate prompts_file=/nope", "/nope"),
        ("generate prompts_file=", "prompts_file= is empty: name a file with a text on each line"),
        ("score file=", "file= is empty"),
        ("score file=src", "src is no file"),
        ("evaluate mix=", "mix= is empty: name another run's directory"),
        ("evaluate mix_weight=0.5", "mix_weight=0.5 does nothing without mix=..."),
        ("evaluate cache.theta=0.5", "cache.theta=0.5 does nothing without cache.size=..."),
        ("evaluate dynamic.decay=0.5", "dynamic.decay=0.5 does nothing without dynamic.lr=..."),
        ("generate temperature=auto", "temperature=auto must be a number"),
        ("generate num_beams=4 length_penalty=1e9", "length_penalty=1000000000.0 must lie between -10 and 10"),
        ("generate num_beams=4 length_penalty=-1e9", "length_penalty=-1000000000.0 must lie between -10 and 10"),
        (
            "generate prompt=\udcc3\udcf7",
            r"prompt='\udcc3\udcf7' is not UTF-8 (character 1): set the terminal to UTF-8",
        ),
        ("generate stop=[a,b\udcc3]", r"stop='b\udcc3' is not UTF-8 (character 2)"),
        ("score text=\udcc3\udcf7", r"text='\udcc3\udcf7' is not UTF-8"),
        ("generate prompts_file=/nope prompt=a", "give one of prompt=... and prompts_file=..."),
    ],
)
def test_a_mistake_on_a_run_is_one_line(arguments: str, told: str, trained, capsys):
    verb, *rest = arguments.split()
    assert told in refused(capsys, verb, f"run_dir={trained['ngram']}", *rest)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("generate", "run_dir=... is needed"),
        ("evaluate run_dir=/nope", "/nope is no run"),
        ("prepare cache=foo", "cache=foo must be one of list, prune"),
        ("prepare corpus=files", "corpus.train="),
        ("runs root=/nope", "train a run first"),
        ("board root=/nope", "train a run first"),
        ("board port=99999", "port=99999"),
        ("evaluate .", "write run_dir=."),
        ("train -m replicates=2 optimizer.lr=1e-2,1e-3", "hydra.sweeper.replicates="),
        ("train sweep.replicates=2", "lmlab sweep replicates="),
        ("train callbacks.early_stopping=patience", "callbacks/early_stopping=OPTION, of patience"),
        ("train callbacks/spikes=skp", "did you mean skip?"),
        ("train trainer.max_time=00:00:10:00", "trainer.max_time=00:00:10:00 ends a run sooner"),
        ("train -m --cfg job", "give one of them"),
        (
            "train model=我的",
            """model=我的 cannot be read: close its brackets, or quote special characters: 'model="我的"'""",
        ),
        (
            "runs prnue",
            "'prnue' is no setting, which are written key=value, and no directory of runs (did you mean prune?)",
        ),
        ("sweep pruning=asha optimizer.lr=1e-3,1e-2", "write pruning.rule=asha"),
        ("prepare cache=list cache_dir=README.md", "cache_dir=README.md is a file; name a directory"),
        ("evaluate run_dir=README.md", "README.md is no run: it is a file; name a run's directory"),
        ("bench save_to=README.md corpus=files corpus.train=README.md", "save_to=README.md: README.md is a file"),
        ("train init_from=/nope/a run_dir=/nope/../nope/a", "init_from=/nope/a is run_dir itself: a run cannot begin"),
        ("sweep space=lr", "space=lr must be a mapping"),
        ("generate temperature=0,7", "temperature=0,7 is several values: write 0.7\n"),
        ("generate max_new_tokens=1,000", "max_new_tokens=1,000 is several values: write 1000\n"),
        ("train optimizer.lr=0,003", "optimizer.lr=0,003 is several values: add -m to train each, or write 0.003\n"),
        ("train trainer.max_steps=1,000", "several values: add -m to train each, or write 1000\n"),
        ("train seed=1,2", "seed=1,2 is several values: add -m to train each, or write a list: seed=[1,2]"),
        ("runs columns=run,seed", "write a list: columns=[run,seed]"),
        ("sweep trials=1,5 optimizer.lr=1e-3,1e-2", "lmlab: trials=1,5: a sweep's own keys have one value; varied are"),
        ("train -m hydra.sweeper.trials=1,5", "hydra.sweeper.trials=1,5: a sweep's own keys have one value"),
        (
            "sweep strategy=list points=[[optimizer.lr=1,seed=2],[optimizer.lr=2]]",
            """the whole: points='[["optimizer.lr=1","seed=2"],["optimizer.lr=2"]]'""",
        ),
        ("sweep strategy=list points=[optimizer.lr=1]", """the whole: points='[["optimizer.lr=1e-2"],["""),
        ("sweep --cfg job optimizer.lr=1e-3,1e-2 n_layer=3", "did you mean model.n_layers?"),
    ],
)
def test_a_mistake_without_a_run_is_one_line(arguments: str, told: str, capsys):
    assert told in refused(capsys, *arguments.split())
