import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from lmlab.tokenizers.codepoints import byte_ends, code_points, count_characters, is_space


@settings(max_examples=50, deadline=None)
@given(text=st.text(max_size=30))
def test_arrays_agree_with_python(text):
    points = code_points(text)
    assert points.tolist() == [ord(c) for c in text]
    assert byte_ends(points).tolist() == np.cumsum([len(c.encode()) for c in text], dtype=int).tolist()
    assert is_space(points).tolist() == [c.isspace() for c in text]


def test_every_white_space_of_python_is_known():
    everything = "".join(chr(i) for i in range(0x110000) if not 0xD800 <= i < 0xE000)
    assert is_space(code_points(everything)).tolist() == [c.isspace() for c in everything]


def test_characters_are_counted_over_documents():
    assert count_characters(["abba", "", "明a"]) == {"a": 3, "b": 2, "明": 1}
