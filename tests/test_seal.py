"""Sealed text comes back as it was, is still YAML or JSON to others, and says when it was changed."""

import json

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from lmlab.seal import Broken, seal, unseal

TREES = st.dictionaries(st.text(), st.none() | st.integers() | st.text() | st.lists(st.integers()))
JSON = json.dumps({"steps": 400, "splits": {"val": 1.8337}}, indent=2)
YAML = "model:\n  d_model: 64\nseed: 0\n"


@settings(deadline=None)
@given(TREES, st.sampled_from([1, 2]), st.sampled_from(["", "\n"]))
def test_json_comes_back_and_is_json_to_others(tree, indent, end):
    text = json.dumps(tree, indent=indent, ensure_ascii=False) + end
    sealed = seal(text)
    assert unseal(sealed) == text
    if tree:
        told = json.loads(sealed)
        assert {key: told[key] for key in tree} == tree


def test_yaml_comes_back_and_is_yaml_to_others():
    assert unseal(seal(YAML)) == YAML
    assert yaml.safe_load(seal(YAML)) == yaml.safe_load(YAML)


@pytest.mark.parametrize("text", ["{}", "{}\n", "[]", ""])
def test_what_has_no_place_for_an_entry_comes_back_too(text: str):
    assert seal(text) != text
    assert unseal(seal(text)) == text


@pytest.mark.parametrize("text", [JSON, YAML])
def test_a_changed_digit_is_seen(text: str):
    sealed = seal(text)
    for place in (place for place, letter in enumerate(sealed) if letter.isdigit()):
        other = "1" if sealed[place] != "1" else "2"
        with pytest.raises(Broken):
            unseal(sealed[:place] + other + sealed[place + 1 :])


@pytest.mark.parametrize("text", [JSON, YAML])
def test_text_without_a_checksum_is_taken_as_it_is(text: str):
    assert unseal(text) == text
