"""The n-gram model against arithmetic by hand, and against Kneser-Ney written over with dictionaries."""

from collections import Counter, defaultdict
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from lmlab.models.kneser_ney import discounts
from lmlab.models.ngram import NGramLM
from lmlab.types import expand, reset, select

CONF = Path(__file__).parents[2] / "conf" / "model"


def zipf(n: int, vocab_size: int, seed: int) -> np.ndarray:
    """A text with a rich enough tail that most orders estimate their discounts; the last word never occurs."""
    rng = np.random.default_rng(seed)
    p = 1 / np.arange(1, vocab_size) ** 1.3
    words = rng.choice(vocab_size - 1, n, p=p / p.sum())
    return np.where(rng.random(n) < 0.5, words, np.roll(words, 7) // 2).astype(np.int64)


def inputs_of(ids: np.ndarray, start_id: int = 0) -> torch.Tensor:
    return torch.tensor([[start_id, *ids[:-1]]])


class Dictionary:
    """Modified Kneser-Ney the slow way: tuples, sets of left neighbours, recursion on P itself."""

    def __init__(self, ids: np.ndarray, start_id: int, vocab_size: int, order: int):
        self._count([[start_id, *map(int, ids)]], vocab_size, order, texts=False)

    @classmethod
    def of(cls, words: list[list[int]], boundary: int, vocab_size: int, order: int) -> "Dictionary":
        """Each word between two boundaries of its own; n-grams that begin with the first have their raw count."""
        self = cls.__new__(cls)
        self._count([[boundary, *word, boundary] for word in words], vocab_size, order, texts=True)
        return self

    def _count(self, all_texts: list[list[int]], vocab_size: int, order: int, texts: bool) -> None:
        self.vocab_size, self.order = vocab_size, order
        self.followers: dict[int, dict] = {}
        self.d = {}
        for k in range(1, order + 1):
            count: dict = defaultdict(Counter)
            if k == order:
                for text in all_texts:
                    for i in range(max(k, 2), len(text) + 1):
                        count[tuple(text[i - k : i - 1])][text[i - 1]] += 1
            else:
                left = defaultdict(set)
                for number, text in enumerate(all_texts):
                    for i in range(max(k, 2), len(text) + 1):
                        nothing = f"nothing before {number}" if texts else "nothing"
                        left[tuple(text[i - k : i])].add(text[i - k - 1] if i > k else nothing)
                for gram, neighbours in left.items():
                    count[gram[:-1]][gram[-1]] = len(neighbours)
            n = Counter(c for words in count.values() for c in words.values())
            self.followers[k], self.d[k] = count, self.discounts(n)

        self.prob = cache(self._prob)

    @staticmethod
    def discounts(n: Counter) -> tuple[float, float, float]:
        if not all(n[i] for i in (1, 2, 3, 4)):
            return 0.5, 1.0, 1.5
        y = n[1] / (n[1] + 2 * n[2])
        d = (1 - 2 * y * n[2] / n[1], 2 - 3 * y * n[3] / n[2], 3 - 4 * y * n[4] / n[3])
        return d if 0 < d[0] <= 1 and 0 < d[1] <= 2 and 0 < d[2] <= 3 else (0.5, 1.0, 1.5)

    def _prob(self, word: int, context: tuple[int, ...]) -> float:
        k = len(context) + 1
        lower = self.prob(word, context[1:]) if k > 1 else 1 / self.vocab_size
        words = self.followers[k].get(context)
        if words is None:
            return lower
        d = self.d[k]
        mine = words[word]
        taken = sum(d[min(c, 3) - 1] for c in words.values())
        kept = mine - d[min(mine, 3) - 1] if mine else 0.0
        return (kept + taken * lower) / sum(words.values())


@pytest.mark.parametrize("order", [1, 2, 3, 4, 5])
@pytest.mark.parametrize(("n", "vocab_size"), [(3000, 60), (700, 6), (3, 5)])
def test_every_probability_equals_a_dictionary_implementation(order, n, vocab_size):
    ids, other = zipf(n, vocab_size, order), zipf(200, vocab_size, 100 + order)
    slow = Dictionary(ids, 0, vocab_size, order)
    model = NGramLM(vocab_size, order).fit(ids, start_id=0)
    if n == 3000 and order > 1:
        assert any(d != (0.5, 1.0, 1.5) for d in slow.d.values()), "the text must exercise estimated discounts"
    for text in (ids[:300], other):
        read = [0, *text.tolist()]
        expected = [slow.prob(read[i], tuple(read[max(0, i - order + 1) : i])) for i in range(1, len(read))]
        hidden, _ = model(inputs_of(text))
        probs = model.head.probs(hidden, torch.from_numpy(text)[None])
        torch.testing.assert_close(probs[0], torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=0)


@pytest.mark.parametrize("order", [1, 2, 3, 5])
@pytest.mark.parametrize("n", [1, 8, 400])
def test_many_texts_are_read_each_by_itself(order, n):
    # Words of 0 to 6 letters over 1 to 8, 0 their boundary; "ten" never occurs.
    random = np.random.default_rng(n)
    words = [np.minimum(random.geometric(0.35, random.integers(0, 7)), 8).tolist() for _ in range(n)]
    slow = Dictionary.of(words, 0, 10, order)
    models = [
        NGramLM(10, order).fit(np.array([id for word in some for id in [*word, 0]]), 0, many=True)
        for some in (words, words[::-1], sorted(words))
    ]
    for word in [*words[:40], [9, 1, 1], [1, 9, 2, 2, 2, 2, 1]]:
        text = np.array([*word, 0])
        read = [0, *text.tolist()]
        expected = [slow.prob(read[i], tuple(read[max(0, i - order + 1) : i])) for i in range(1, len(read))]
        for model in models:
            hidden, _ = model(inputs_of(text))
            probs = model.head.probs(hidden, torch.from_numpy(text)[None])[0]
            torch.testing.assert_close(probs, torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=0)


def test_a_text_of_five_words_by_hand():
    # Vocabulary: 0 <eos>, 1 a, 2 b, 3 unseen. The text "a b a b <eos>" after <eos>: 0 | 1 2 1 2 0.
    # No order has n-grams seen 3 and 4 times, so D = 1/2, 1, 3/2.
    # Order 1, distinct left neighbours: a {<eos>, b} 2, b {a} 1, <eos> {b} 1, of 4. Left over, and shared by 4 words:
    #   (1 + 1/2 + 1/2) / 4 = 1/2. P(a) = (2-1)/4 + 1/8 = 3/8; P(b) = P(<eos>) = (1-1/2)/4 + 1/8 = 1/4; P(unseen) = 1/8.
    # Order 2, distinct left neighbours: <eos> a {nothing} 1, a b {<eos>, b} 2, b a {a} 1, b <eos> {a} 1.
    #   P(a|<eos>) = (1-1/2)/1 + 1/2 P(a) = 11/16
    #   P(b|a) = (2-1)/2 + (1/2) P(b) = 5/8
    #   after b half is left over: P(a|b) = (1-1/2)/2 + (1/2)(3/8) = 7/16; P(<eos>|b) = 1/4 + 1/8 = 3/8; P(b|b) = 1/8
    # Order 3, raw counts: <eos> a b 1, a b a 1, b a b 1, a b <eos> 1.
    #   P(b|<eos> a) = 1/2 + 1/2 P(b|a) = 13/16, P(b|b a) the same
    #   P(a|a b) = (1-1/2)/2 + (1/2) P(a|b) = 15/32; P(<eos>|a b) = 1/4 + (1/2)(3/8) = 7/16
    ids = np.array([1, 2, 1, 2, 0])
    model = NGramLM(vocab_size=4, order=3).fit(ids, start_id=0)
    hidden, state = model(inputs_of(ids))
    assert hidden.tolist() == [[[0, 1], [1, 2], [2, 3], [3, 2], [2, 3]]]
    assert state.tolist() == [[2, 3]]
    probs = model.head.probs(hidden, torch.from_numpy(ids)[None])[0]
    torch.testing.assert_close(probs, torch.tensor([11 / 16, 13 / 16, 15 / 32, 13 / 16, 7 / 16]).double())
    nll = model.head.nll(hidden, torch.from_numpy(ids)[None])
    assert nll.dtype == torch.float32
    torch.testing.assert_close(nll[0], -probs.log().float())
    # Contexts that never occurred fall to the lower orders: "b b" to "b", "unseen unseen" to order 1.
    contexts = torch.tensor([[[3, 3], [4, 4]]])
    expected = torch.tensor([[[3 / 8, 7 / 16, 1 / 8, 1 / 16], [1 / 4, 3 / 8, 1 / 4, 1 / 8]]])
    torch.testing.assert_close(model.head.log_probs(contexts).exp(), expected)


def test_discounts_follow_chen_and_goodman():
    # n1 = 10, n2 = 4, n3 = 2, n4 = 1: Y = 10 / 18 = 5/9.
    # D1 = 1 - 2 (5/9) (4/10) = 5/9; D2 = 2 - 3 (5/9) (2/4) = 7/6; D3+ = 3 - 4 (5/9) (1/2) = 17/9.
    counts = np.repeat([1, 2, 3, 4, 9], [10, 4, 2, 1, 3])
    np.testing.assert_allclose(discounts(counts), [0, 5 / 9, 7 / 6, 17 / 9], rtol=1e-12)


@pytest.mark.parametrize("counts", [[1, 1, 2, 3], [1, 2, 3, 4, 4, 4, 4], [7, 8, 9]])
def test_discounts_without_a_usable_estimate_fall_back(counts):
    # n4 = 0; D3+ = 3 - 4 (1/3) 4 < 0; no small counts at all.
    np.testing.assert_array_equal(discounts(np.array(counts)), [0, 0.5, 1, 1.5])


@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_probabilities_sum_to_one_after_seen_and_unseen_contexts(order):
    model = NGramLM(30, order).fit(zipf(2000, 30, 0), start_id=0)
    tokens = torch.cat([torch.from_numpy(zipf(40, 30, 0))[None], torch.randint(30, (1, 40))], 0)
    tokens[1, 20:25] = 29  # never occurred
    hidden, _ = model(tokens)
    log_probs = model.head.log_probs(hidden)
    assert log_probs.shape == (2, 40, 30)
    torch.testing.assert_close(log_probs.double().exp().sum(-1), torch.ones(2, 40).double(), rtol=0, atol=2e-6)
    for w in (0, 7, 29):
        nll = model.head.nll(hidden, torch.full_like(tokens, w))
        torch.testing.assert_close(-log_probs[..., w], nll, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("order", [1, 2, 5])
def test_chunked_equals_whole_and_zero_rows_start_the_text(order):
    model = NGramLM(30, order).fit(zipf(2000, 30, 0), start_id=0)
    tokens = torch.from_numpy(zipf(60, 30, 3)).view(2, 30)
    whole, last = model(tokens)
    assert whole.shape == (2, 30, model.d_model)
    state, parts = None, []
    for part in tokens.split([1, 2, 12, 15], 1):
        hidden, state = model(part, state)
        parts.append(hidden)
    assert torch.equal(torch.cat(parts, 1), whole)
    assert torch.equal(state, last)
    # One row starts over, the other goes on.
    hidden, _ = model(tokens, reset(state, torch.tensor([True, False])))
    assert torch.equal(hidden[0], whole[0])
    assert torch.equal(hidden[1, 0], torch.cat([last[1, 1:], tokens[1, :1] + 1]) if order > 2 else tokens[1, :1] + 1)
    assert torch.equal(select(expand(state, 3), torch.tensor([5])), last[1:])


def test_future_tokens_do_not_change_the_past():
    model = NGramLM(30, 4).fit(zipf(2000, 30, 0), start_id=0)
    tokens = torch.from_numpy(zipf(20, 30, 1))[None]
    changed = tokens.clone()
    changed[:, 10:] = 29 - changed[:, 10:]
    before, after = (model.head.log_probs(model(t)[0])[:, :10] for t in (tokens, changed))
    assert torch.equal(before, after)


@pytest.mark.parametrize("order", [1, 3])
def test_save_then_load_is_exact(tmp_path, order):
    model = NGramLM(30, order).fit(zipf(2000, 30, 0), start_id=0)
    torch.save(model.state_dict(), tmp_path / "model.pt")
    state_dict = torch.load(tmp_path / "model.pt", weights_only=True)
    fresh = NGramLM(30, order)
    fresh.load_state_dict(state_dict)
    hidden, _ = model(torch.from_numpy(zipf(50, 30, 1))[None])
    assert torch.equal(fresh.head.log_probs(hidden), model.head.log_probs(hidden))
    # Loading replaces what another text had put there, and not by sharing memory.
    fresh.fit(zipf(100, 30, 9), start_id=0).load_state_dict(state_dict)
    fresh.head.unigram.zero_()
    assert state_dict["head.unigram"].all()


def test_tables_that_do_not_fit_are_refused():
    state_dict = NGramLM(30, 3).fit(zipf(2000, 30, 0), start_id=0).state_dict()
    with pytest.raises(RuntimeError, match="vocab_size=31"):
        NGramLM(31, 3).load_state_dict(state_dict)
    with pytest.raises(RuntimeError, match="keys4"):
        NGramLM(30, 4).load_state_dict(state_dict)
    state_dict["head.kept3"] = state_dict["head.kept3"][:-1]
    with pytest.raises(RuntimeError, match="tables of order 3 do not fit"):
        NGramLM(30, 3).load_state_dict(state_dict)


def test_before_it_is_fitted_every_word_is_equally_likely():
    model = NGramLM(8, 3)
    hidden, _ = model(torch.tensor([[0, 5, 7]]))
    torch.testing.assert_close(model.head.log_probs(hidden).exp(), torch.full((1, 3, 8), 1 / 8))


def test_memory_maps_of_small_integers_are_counted_without_overflow(tmp_path):
    ids = zipf(3000, 250, 0)
    np.save(tmp_path / "ids.npy", ids.astype(np.uint8))
    stored = NGramLM(250, 3).fit(np.load(tmp_path / "ids.npy", mmap_mode="r"), start_id=0)
    wide = NGramLM(250, 3).fit(ids, start_id=0)
    assert all(torch.equal(a, b) for a, b in zip(stored.buffers(), wide.buffers(), strict=True))


def test_impossible_requests_name_the_value():
    with pytest.raises(ValueError, match="order=0"):
        NGramLM(8, 0)
    with pytest.raises(ValueError, match="empty"):
        NGramLM(8, 2).fit(np.array([], np.int64), start_id=0)
    with pytest.raises(ValueError, match="outside vocab_size=8"):
        NGramLM(8, 2).fit(np.array([1, 8]), start_id=0)


@pytest.mark.parametrize(("option", "order"), [("ngram", 5), ("unigram", 1)])
def test_options_build_their_model(option, order):
    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    model = instantiate(OmegaConf.load(CONF / f"{option}.yaml"))(vocab_size=7, token_counts=torch.ones(7).long())
    assert (model.order, model.vocab_size) == (order, 7)
