"""Text from a model: one decoding loop for every architecture, because all of them carry a state."""

import logging
import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import nn

from lmlab.errors import check_text
from lmlab.generation.beams import BeamSearch
from lmlab.generation.decoding import Decoding, Generated, ending_id, unknown_note
from lmlab.generation.row import Row
from lmlab.generation.sampling import Lockstep
from lmlab.models import kernels
from lmlab.models import precision as precisions
from lmlab.models.carry import Carry, device_of
from lmlab.models.packed import packed
from lmlab.models.workspace import kept

__all__ = ["Decoding", "Generated", "generate"]
log = logging.getLogger("lmlab")


def generate(
    model: nn.Module,
    tokenizer,
    prompts: Sequence[str],
    *,
    on_text: Callable[[str], None] | None = None,
    batch_size: int | None = None,
    **settings,
) -> list[list[Generated]]:
    """For each prompt its texts, `num_samples` of them; `settings` are the fields of `Decoding`.

    A prompt may be empty: every text starts from `tokenizer.start_id`. A token costs one step of the model however
    long the text is. on_text: gets the text piece by piece as it is written, for one prompt and one sample.
    batch_size: rows (prompts times samples) at once, all when left out; it changes no text.

    Past the last learned position (GPT-2) the last half window is read again, which a note on the text says.
    Raises ValueError for settings that make no sense, or a tokenizer with more ids than the model has.
    """
    decoding = Decoding(**settings)
    if isinstance(prompts, str):
        raise ValueError(f"prompts={prompts!r} must be a list of strings: prompts=[{prompts!r}]")
    for prompt in prompts:
        check_text("prompt", prompt)
    if tokenizer.vocab_size > model.vocab_size:
        raise ValueError(
            f"tokenizer.vocab_size={tokenizer.vocab_size} exceeds model.vocab_size={model.vocab_size}: "
            "use the tokenizer that the model was trained with"
        )
    if on_text is not None and (len(prompts), decoding.num_samples) != (1, 1):
        raise ValueError(
            f"on_text streams a single text, not {len(prompts)} prompts with num_samples={decoding.num_samples}: "
            "pass one prompt with num_samples=1, or leave on_text out"
        )
    was_training = model.training
    model.eval()
    try:
        return _generate(model, tokenizer, prompts, decoding, on_text, batch_size)
    finally:
        model.train(was_training)


@torch.inference_mode()
def _generate(model, tokenizer, prompts, decoding, on_text, batch_size) -> list[list[Generated]]:
    ids = {number: tokenizer.encode(prompt).ids.tolist() for number, prompt in enumerate(prompts)}
    eos_id = ending_id(tokenizer, decoding)
    rows: dict[tuple[int, int], Row] = {}
    at_once = (
        decoding.num_beams if decoding.num_beams > 1 else min(batch_size or math.inf, len(ids) * decoding.num_samples)
    )
    with (
        kernels.using(decoding.kernels),
        kept(),
        precisions.using(str(decoding.precision), device_of(model)),
        packed(model, at_once, decoding.max_new_tokens),
    ):
        if decoding.num_beams > 1:
            search = BeamSearch(model, tokenizer, decoding, eos_id)
            for number, prompt in ids.items():
                rows |= {(number, sample): row for sample, row in enumerate(search.run(prompt))}
            if on_text is not None:
                on_text(rows[0, 0].text)
        else:
            lockstep = Lockstep(model, tokenizer, decoding, eos_id, on_text)
            for group, samples in _groups(ids, decoding.num_samples, batch_size):
                rows |= lockstep.run(group, samples)
    results = [[] for _ in prompts]
    for (number, _), row in sorted(rows.items(), key=lambda item: item[0]):
        results[number].append(row.finish(_notes(model, tokenizer, prompts[number], ids[number], row)))
    if on_text is None:
        # Who streams a text has its notes with the result: in between they would stand in the middle of it.
        for note in dict.fromkeys(note for texts in results for text in texts for note in text.notes):
            log.info(note)
    return results


def _groups(
    ids: dict[int, list[int]], num_samples: int, batch_size: int | None
) -> Iterator[tuple[dict[int, list[int]], range]]:
    """Prompts, and which of their samples, that are written together; prompts of similar length meet."""
    batch_size = batch_size or max(1, len(ids) * num_samples)
    numbers = sorted(ids, key=lambda number: len(ids[number]))
    per_group = max(1, batch_size // num_samples)
    for i in range(0, len(numbers), per_group):
        group = {number: ids[number] for number in numbers[i : i + per_group]}
        for first in range(0, num_samples, batch_size):
            yield group, range(first, min(first + batch_size, num_samples))


def _notes(model: nn.Module, tokenizer, prompt: str, prompt_ids: list[int], row: Row) -> tuple[str, ...]:
    notes = [unknown_note(tokenizer, prompt)]
    # The start token is read, the last token written is not.
    window = Carry(model).window
    if window is not None and len(prompt_ids) + len(row.ids) > window:
        notes.append(
            f"the text outgrew the model's {window} positions: "
            f"each time they were used up, the last {window // 2} tokens were read again as a new text's beginning"
        )
    return tuple(note for note in notes if note)
