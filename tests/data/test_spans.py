"""What each token covers: counted as Python counts, and refused where it is not the text's."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.data.texts import Texts, leftovers

from lmlab.data.spans import span_counts
from lmlab.data.store import prepare
from lmlab.tokenizers import Encoding


@given(st.text(alphabet=st.sampled_from("ab é永　\u2003\u0085\n\x1c\u1680\u205f\u00a0"), max_size=60), st.data())
def test_spans_count_characters_and_words_as_python_does(text, data):
    source = text.encode()
    ends = np.array([*sorted(data.draw(st.lists(st.integers(0, len(source)), max_size=8))), len(source)])
    counts, _ = span_counts(source or b" ", ends, np.array([0]))
    assert counts.sum(1).tolist() == [len(source), len(text), len(text.split())]
    starts = [0, *ends[:-1]]
    characters = [sum((byte & 0xC0) != 0x80 for byte in source[a:b]) for a, b in zip(starts, ends, strict=True)]
    assert counts[1].tolist() == characters


class Wrong:
    """A tokenizer whose spans are not those of its text."""

    kind, vocab_size, eos_id, unk_id = "wrong", 10, 0, None

    def __init__(self, ids, ends):
        self._encoding = Encoding(np.array(ids, dtype=np.int32), np.array(ends, dtype=np.int64))

    def encode_batch(self, texts):
        return [self._encoding for _ in texts]

    def needs_eos(self, tail):
        return False

    def save(self, path):
        path.write_text("{}")


@pytest.mark.parametrize(
    ("ids", "ends", "message"),
    [
        ([1, 2], [1, 9], "its ends do not fit"),
        ([1, 2], [1], "its ends do not fit"),
        ([1, 2], [2, 1], "must not decrease"),
        ([1, 12], [1, 2], "gave id 12, but vocab_size=10"),
    ],
)
def test_spans_that_do_not_cover_the_text_are_refused(tmp_path, ids, ends, message):
    with pytest.raises(ValueError, match=message):
        prepare(Texts(train=["abc"]), lambda documents: Wrong(ids, ends), {}, tmp_path, progress=False)
    assert leftovers(tmp_path) == []


def test_bytes_that_no_token_claims_fall_to_the_next_token_or_the_last(tmp_path):
    store = prepare(Texts(train=[["abc", "de"]]), lambda documents: Wrong([1], [1]), {}, tmp_path, progress=False)
    # "a" | "bc" + "d" + "e", which nothing follows
    assert store.split("train").n_bytes.tolist() == [1, 4]
