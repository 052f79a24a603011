import json

import pytest

from lmlab.tokenizers import load


@pytest.fixture
def saved(tokenizer, tmp_path):
    path = tmp_path / "tokenizer.json"
    tokenizer.save(path)
    return path


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_a_truncated_file_is_refused_by_name(saved, share):
    data = saved.read_bytes()
    saved.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(ValueError, match=r"tokenizer\.json is damaged .*lmlab prepare"):
        load(saved)


def broken_vocabulary(content):
    vocab = content["model"]["vocab"]
    content["model"]["vocab"] = vocab[1:] if isinstance(vocab, list) else dict(list(vocab.items())[3:])


@pytest.mark.parametrize(
    "damage",
    [
        lambda c: c.pop("model"),
        lambda c: c["model"].pop("vocab"),
        lambda c: c["model"].update(vocab=3),
        lambda c: c.update(model=[]),
        broken_vocabulary,
    ],
)
def test_damaged_content_is_refused_by_name(saved, damage, tokenizer):
    content = json.loads(saved.read_text(encoding="utf-8"))
    damage(content)
    saved.write_text(json.dumps(content), encoding="utf-8")
    if tokenizer.kind == "pretrained" and damage is broken_vocabulary:
        # Ids of a foreign file may have gaps.
        assert load(saved).vocab_size == tokenizer.vocab_size
        return
    with pytest.raises(ValueError, match=r"tokenizer\.json is damaged"):
        load(saved)


@pytest.mark.parametrize("data", [b"\xff\xfe\x00", b"null", b"[1, 2]", b'{"model": {"lmlab": 3}}'])
def test_files_of_another_kind_are_refused_by_name(tmp_path, data):
    path = tmp_path / "tokenizer.json"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"tokenizer\.json is damaged"):
        load(path)


def test_a_missing_file_says_what_makes_it(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no tokenizer at .*lmlab prepare"):
        load(tmp_path / "tokenizer.json")


def test_a_newer_format_or_kind_is_refused_with_the_known_ones(kinds, tmp_path):
    path = tmp_path / "tokenizer.json"
    for key, value, message in (("format", 99, "has format 99"), ("kind", "morse", "kind 'morse'")):
        content = json.loads(kinds["char"].to_json())
        content["model"]["lmlab"][key] = value
        path.write_text(json.dumps(content), encoding="utf-8")
        with pytest.raises(ValueError, match=message):
            load(path)


def test_a_failed_save_leaves_the_old_file(kinds, tmp_path, monkeypatch):
    path = tmp_path / "tokenizer.json"
    kinds["char"].save(path)
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match="No space left"):
        kinds["byte"].save(path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["tokenizer.json"]
