"""The decoding loop: states, batches, seeds, and where a text ends."""

import itertools
import math

import numpy as np
import pytest
import torch
from tests.generation.toys import ABC, NEUTRAL, Learned, Letters, Table, naive_greedy, one, write

from lmlab.generation import Decoding
from lmlab.tokenizers import byte, word


def test_greedy_follows_the_likeliest_token():
    uniform = [1 / 7] * 7
    rows = [
        [0.1, 0, 0.6, 0.3, 0, 0, 0],  # after <eos>: a
        uniform,
        [0.2, 0.1, 0.2, 0.5, 0, 0, 0],  # after a: b
        [0.1, 0.2, 0.1, 0.1, 0.5, 0, 0],  # after b: c
        [0.3, 0, 0.7, 0, 0, 0, 0],  # after c: a
        uniform,
        uniform,
    ]
    table = Table.bigram(rows)
    result = one(table, max_new_tokens=5)
    assert (result.text, result.ids, result.stopped_because) == ("abcab", (2, 3, 4, 2, 3), "max_new_tokens")
    assert result.log_prob == pytest.approx(math.log(0.6 * 0.5 * 0.5 * 0.7 * 0.5), rel=1e-6)


@pytest.mark.parametrize("prompt", ["", "a", "dcbaabdcab", "c" * 40])
def test_the_carried_state_writes_what_reading_the_whole_text_anew_would(model, prompt):
    assert list(one(model, [prompt], max_new_tokens=20).ids) == naive_greedy(model, prompt, 20)


def test_a_token_costs_one_step_however_long_the_text():
    table = Table(torch.zeros(8, 7, 7))
    table.table[..., 2] = 1.0
    write(table, ["abcd" * 4, "a"], max_new_tokens=50)
    # The shortest prompt at once with the start token, then a step for each token but the last.
    assert table.widths[0] == (2, 2)
    assert {width for _, width in table.widths[1:]} == {1}
    assert len(table.widths) == 1 + 49 + (len(ABC.encode("abcd" * 4).ids) - 1)


@pytest.mark.parametrize("batch_size", [None, 1, 2, 5])
def test_a_text_does_not_depend_on_the_others_in_the_batch(model, batch_size):
    prompts, how = (
        ["", "abcd", "a", "bbbbccccdddd", "abcd"],
        {"temperature": 1.0, "num_samples": 3, "repetition_penalty": 1.2},
    )
    together = write(model, prompts, batch_size=batch_size, **how)
    for place, prompt in enumerate(prompts):
        # The number of a prompt is part of its seed: the others become empty.
        alone = write(model, ["" if i != place else prompt for i in range(place + 1)], **how)
        assert [g.ids for g in together[place]] == [g.ids for g in alone[place]]
    assert together[1][0].ids != together[4][0].ids or together[1][1].ids != together[4][1].ids


def test_the_seed_alone_decides_and_the_global_generator_is_left_alone(model):
    how = {"temperature": 1.0, "max_new_tokens": 30, "num_samples": 4}
    before = torch.get_rng_state()
    first = write(model, **how)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(99)
    assert write(model, **how) == first
    assert write(model, seed=1, **how) != first


def test_samples_have_the_frequencies_of_the_table():
    probs = [0.2, 0.0, 0.4, 0.25, 0.1, 0.04, 0.01]
    samples = write(Table.bigram([probs] * 7), max_new_tokens=1, temperature=1.0, num_samples=4000)[0]
    counts = np.bincount([g.ids[0] for g in samples], minlength=7)
    # Chi-square with 5 degrees of freedom stays under 20.5 with probability 0.999; the seed is fixed.
    expected = 4000 * np.array(probs)
    assert ((counts - expected)[expected > 0] ** 2 / expected[expected > 0]).sum() < 20.5
    assert counts[1] == 0


def test_log_prob_is_the_models_own_whatever_the_filters():
    probs = [0.2, 0.3, 0.3, 0.1, 0.05, 0.05, 0.0]
    result = one(Table.bigram([probs] * 7), temperature=0.5, top_k=3, top_p=0.9, repetition_penalty=1.5)
    assert result.log_prob == pytest.approx(sum(math.log(probs[i]) for i in result.ids), rel=1e-6)


def test_repetition_penalty_counts_the_prompt_but_not_the_start_token():
    # Logits 2 for a, 1.5 for b, 1.2 for <eos>: a in the prompt falls to 1, the start token <eos> keeps 1.2.
    table = Table(torch.tensor([1.2, 0.0, 2.0, 1.1, 0.0, 0.0, 0.0]).expand(8, 7, 7))
    assert one(table, [""], max_new_tokens=1, repetition_penalty=2.0).text == "a"
    assert one(table, ["a"], max_new_tokens=1, repetition_penalty=2.0).stopped_because == "eos"


def test_unk_and_rows_beyond_the_vocabulary_are_never_written():
    table = Table(torch.tensor([0.0, 9.0, 1.0, 0.0, 0.0, 0.0, 0.0, 8.0]).expand(9, 8, 8))
    assert one(table).ids == (2,) * 8
    assert one(table, ban_unk=False).ids == (1,) * 8
    assert set(one(table, temperature=5.0, max_new_tokens=300, stop_at_eos=False).ids) == {0, 2, 3, 4, 5, 6}


def test_characters_that_the_vocabulary_lacks_are_read_as_unk_and_named(model, caplog):
    with caplog.at_level("INFO", "lmlab"):
        results = write(model, ["aéb☃é", "ab"])
    assert results[0][0].notes[0] == "the vocabulary lacks 'é', '☃': read as <unk>"
    assert "'é', '☃'" in caplog.text
    assert not any("lacks" in note for note in results[1][0].notes)


def test_past_learned_positions_a_note_says_so():
    torch.manual_seed(0)
    model = Learned(7, 8)
    short, long = write(model, ["ab", "abc" * 5], max_new_tokens=5, stop_at_eos=False)
    assert short[0].notes == ()
    assert "8 positions" in long[0].notes[0]
    # <eos> and the prompt take 2 positions, 7 written tokens of which the last is not read: all 8 and no more.
    assert one(model, ["a"], max_new_tokens=7, stop_at_eos=False).notes == ()
    assert one(model, ["a"], max_new_tokens=8, stop_at_eos=False).notes != ()


def test_the_model_is_left_in_the_mode_it_was_in(model):
    seen = []
    model.register_forward_hook(lambda *_: seen.append((model.training, torch.is_inference_mode_enabled())))
    write(model.train())
    assert model.training
    assert set(seen) == {(False, True)}
    write(model.eval())
    assert not model.training


def chain(*pieces: str) -> tuple[Table, Letters]:
    """A model that writes these pieces one after the other, then <eos>."""
    tokenizer = Letters(*pieces)
    probs = torch.full((len(pieces) + 2,) * 2, 1e-6)
    for i, j in itertools.pairwise([0, *range(2, len(pieces) + 2), 0]):
        probs[i, j] = 1.0
    return Table(probs.log().expand(len(probs) + 1, -1, -1)), tokenizer


def test_eos_ends_a_text_and_is_not_shown():
    model, tokenizer = chain("One. ", "Two.")
    result = one(model, [""], tokenizer)
    assert (result.text, result.ids, result.stopped_because) == ("One. Two.", (2, 3, 0), "eos")


def test_where_eos_is_every_newline_a_text_goes_on_after_it():
    model, tokenizer = chain("One. ", "Two.")
    tokenizer.needs_eos = lambda tail: not tail.endswith("\n")
    assert one(model, [""], tokenizer).ids == (2, 3, 0, 2, 3, 0, 2, 3)
    assert one(model, [""], tokenizer, stop_at_eos=True).ids == (2, 3, 0)


@pytest.mark.parametrize(
    ("stop", "text"),
    [
        (["STOP"], "One ST two "),
        (["x", "TOP"], "One ST two S"),
        (["ST two STOP!", "two"], "One ST "),
        (["never"], "One ST two STOP! end"),
        (["One"], ""),
        (["OP! e", "P!"], "One ST two ST"),
    ],
)
def test_stop_strings_are_found_across_tokens_and_never_streamed(stop, text):
    model, tokenizer = chain("One S", "T two ", "S", "T", "OP", "! e", "nd")
    heard = []
    result = one(model, [""], tokenizer, on_text=heard.append, stop=stop)
    assert result.text == "".join(heard) == text
    assert result.stopped_because == ("eos" if stop == ["never"] else "stop")
    assert all(heard)


def test_text_is_streamed_as_it_is_written():
    model, tokenizer = chain("a", "b", "c", "d")
    heard = []
    one(model, [""], tokenizer, on_text=heard.append, stop=["cx"])
    assert heard == ["a", "b", "cd"]


def forced(tokenizer, text: str) -> Table:
    """A model that writes exactly this text, the tokens of which are all different."""
    ids = [tokenizer.start_id, *tokenizer.encode(text).ids.tolist(), tokenizer.eos_id]
    table = torch.zeros(tokenizer.vocab_size + 1, tokenizer.vocab_size, tokenizer.vocab_size)
    for before, i, j in zip([-1, *ids], ids, ids[1:], strict=False):
        table[before + 1, i, j] = 30.0
    return Table(table)


def test_a_character_of_several_tokens_is_streamed_whole():
    tokenizer, heard = byte.train([]), []
    result = one(forced(tokenizer, "春江。"), [""], tokenizer, max_new_tokens=20, on_text=heard.append)
    assert heard == ["春", "江", "。"]
    assert result.text == "春江。"
    assert one(forced(tokenizer, "春江"), [""], tokenizer, max_new_tokens=5).text == "春\ufffd"


def test_words_are_set_off_from_the_prompt_and_lines_go_on():
    tokenizer = word.train(["the cat sat . on it !"], min_count=1, max_vocab=None)
    model = forced(tokenizer, "the cat sat .\non it !")
    result = one(model, ["the cat"], tokenizer, max_new_tokens=7)
    assert result.text == " sat .\non it !\n"
    assert one(model, ["the cat"], tokenizer, max_new_tokens=9, stop_at_eos=True).text == " sat ."
    assert one(model, ["the cat"], tokenizer, max_new_tokens=9, stop=[".\non"]).text == " sat "
    assert one(model, [""], tokenizer, max_new_tokens=1).text == "the"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": -0.5}, r"temperature=-0\.5 must be 0 \(greedy\)"),
        ({"temperature": math.nan}, "temperature=nan"),
        ({"top_p": 0.0}, r"top_p=0\.0 must be above 0"),
        ({"top_p": 1.1}, r"top_p=1\.1 must be above 0 and at most 1"),
        ({"top_k": 0}, "top_k=0 must be at least 1"),
        ({"min_p": 2.0}, r"min_p=2\.0"),
        ({"repetition_penalty": 0.0}, r"repetition_penalty=0\.0"),
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
        ({"num_beams": 4, "temperature": 0.8}, r"num_beams=4 .*temperature=0\.8 .*set temperature=0"),
        ({"num_beams": 4, "top_k": 5}, "top_k=5 .*set top_k=null"),
        ({"num_beams": 2, "num_samples": 3}, "num_samples=3 must be at most num_beams=2"),
        ({"num_samples": 3}, "num_samples=3 with temperature=0"),
        ({"stop": "END"}, r"stop='END' must be a list .*\['END'\]"),
        ({"stop": [""]}, "leave the empty string out"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_settings_that_make_no_sense_are_refused_with_the_remedy(settings, message):
    with pytest.raises(ValueError, match=message):
        Decoding(**(NEUTRAL | settings))


def test_bad_calls_are_refused_with_the_remedy(model):
    with pytest.raises(ValueError, match="prompts='ab' must be a list"):
        write(model, "ab")
    with pytest.raises(ValueError, match="on_text streams a single text"):
        write(model, ["a", "b"], on_text=print)
    with pytest.raises(ValueError, match=r"tokenizer.vocab_size=9 exceeds model.vocab_size=7"):
        write(model, ["a"], Letters(*"abcdefg"))


@pytest.mark.parametrize("how", [{"temperature": 1.0}, {"temperature": 0.0}, {"num_beams": 3}], ids=str)
def test_weights_that_are_nan_are_named(how):
    with pytest.raises(ValueError, match="NaN"):
        write(Table(torch.full((8, 7, 7), math.nan)), **how)


@pytest.mark.parametrize("how", [{}, {"temperature": 1.0}, {"num_beams": 2}], ids=["greedy", "sampled", "beams"])
def test_in_bf16_products_are_made_in_it_and_log_probs_are_near(how):
    # Of other weights, sure of every letter, the sum may be near zero, and what bf16 rounds away a large part of it.
    torch.manual_seed(0)
    model, seen = Learned(7, 64), set()
    model.out.register_forward_hook(lambda module, inputs, output: seen.add(output.dtype))
    exact = one(model, ["abcd"], max_new_tokens=20, **how)
    assert seen == {torch.float32}
    seen.clear()
    half = one(model, ["abcd"], max_new_tokens=20, precision="bf16-mixed", **how)
    assert seen == {torch.bfloat16}
    assert not torch.is_autocast_enabled("cpu")
    again = model.head.log_probs(model(torch.tensor([[0, *ABC.encode("abcd").ids, *half.ids]]))[0])[0]
    places = range(len(again) - 1 - len(half.ids), len(again) - 1)
    assert half.log_prob == pytest.approx(
        sum(again[i, t].item() for i, t in zip(places, half.ids, strict=True)), rel=2e-2
    )
    assert half.log_prob != exact.log_prob


def test_a_precision_that_is_none_is_refused():
    with pytest.raises(ValueError, match="precision=16 must be one of 32, bf16-mixed"):
        one(Learned(7, 8), precision=16)
