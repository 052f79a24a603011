"""One tokenizer of each kind, trained on the same few lines."""

import pytest

import tokenizers
from lmlab.tokenizers import bpe, byte, char, pretrained, unigram, word

DOCUMENTS = [
    "The state of the Union is strong .\nThe people of the United States know it .\n",
    "It was the best of times , it was the worst of times ; it's 1859 .\n",
    "明月几时有？把酒问青天。\n不知天上宫阙，今夕是何年。\n",
    "Senjō no Valkyria 3 : <unk> Chronicles ( 戦場のヴァルキュリア3 )\n",
] * 4


def gpt2_like(path):
    """A byte-level tokenizer.json that another tool wrote."""
    other = tokenizers.Tokenizer(tokenizers.models.BPE())
    other.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    other.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    other.train_from_iterator(DOCUMENTS, trainer)
    other.save(str(path))
    return path


TRAIN = {
    "char": lambda _: char.train(DOCUMENTS, min_count=1),
    "byte": lambda _: byte.train(DOCUMENTS),
    "word": lambda _: word.train(DOCUMENTS, min_count=1, max_vocab=None),
    "bpe": lambda _: bpe.train(DOCUMENTS, vocab_size=320, min_frequency=2, sample_bytes=10_000),
    "unigram": lambda _: unigram.train(
        DOCUMENTS, vocab_size=400, byte_fallback=True, character_coverage=0.99, sample_bytes=10_000
    ),
    "unigram_unk": lambda _: unigram.train(
        DOCUMENTS, vocab_size=160, byte_fallback=False, character_coverage=1.0, sample_bytes=10_000
    ),
    "pretrained": lambda folder: pretrained.train(
        (), source=str(gpt2_like(folder / "tokenizer.json")), revision=None, eos_token=None, bos_token=None
    ),
}
LOSSLESS = ["byte", "bpe", "unigram", "pretrained"]


@pytest.fixture(scope="session")
def kinds(tmp_path_factory):
    return {name: train(tmp_path_factory.mktemp(name)) for name, train in TRAIN.items()}


@pytest.fixture(scope="session", params=list(TRAIN))
def tokenizer(kinds, request):
    return kinds[request.param]


@pytest.fixture(scope="session", params=LOSSLESS)
def lossless(kinds, request):
    return kinds[request.param]
