"""One text under way: what is to be read, what was written, where it ends."""

from collections.abc import Callable, Sequence

import numpy as np
import torch

from lmlab.generation.decoding import Decoding, Generated
from lmlab.tokenizers import StreamDecoder


class Row:
    """A text that grows token by token; `pending` are the ids that the model has not read yet.

    Stop strings are found across tokens, and `on_text` never gets text that may turn out to begin one.
    """

    def __init__(
        self,
        tokenizer,
        prompt_ids: Sequence[int],
        decoding: Decoding,
        eos_id: int | None,
        on_text: Callable[[str], None] | None = None,
    ):
        self.pending: list[int] = []
        self.ids: list[int] = []
        self.log_prob = 0.0
        self.text = ""
        self.stopped_because: str | None = None
        self._decoding, self._eos_id, self._on_text = decoding, eos_id, on_text
        self._sent = 0
        self._decoder = StreamDecoder(tokenizer)
        # The prompt decides whether the first word written is set off by a space.
        for i in prompt_ids:
            self._decoder.push(i)

    def push(self, id: int, log_prob: float) -> None:
        """Write one more token."""
        self.ids.append(id)
        self.log_prob += log_prob
        self.pending = [id]
        if id == self._eos_id:
            self._end("eos")
        elif self._grow(self._decoder.push(id)):
            self._end("stop")
        elif len(self.ids) == self._decoding.max_new_tokens:
            self._end("max_new_tokens")
        self._send()

    def finish(self, notes: tuple[str, ...]) -> Generated:
        """The result."""
        return Generated(self.text, tuple(self.ids), self.log_prob, self.stopped_because, notes)

    def _grow(self, text: str) -> bool:
        """Append text; if a stop string is in it, cut the text before the first one."""
        old, self.text = len(self.text), self.text + text
        found = [self.text.find(s, max(0, old - len(s) + 1)) for s in self._decoding.stop]
        cut = min((i for i in found if i >= 0), default=None)
        if cut is not None:
            self.text = self.text[:cut]
        return cut is not None

    def _end(self, why: str) -> None:
        if why != "stop" and self._grow(self._decoder.flush()):
            why = "stop"
        self.stopped_because = why

    def _send(self) -> None:
        if self._on_text is None:
            return
        safe = len(self.text) - (0 if self.stopped_because else self._held_back())
        if safe > self._sent:
            self._on_text(self.text[self._sent : safe])
            self._sent = safe

    def _held_back(self) -> int:
        """Length of the longest end of the text that begins a stop string."""
        return max((n for s in self._decoding.stop for n in range(1, len(s)) if self.text.endswith(s[:n])), default=0)


def generator(seed: int, prompt: int, sample: int) -> torch.Generator:
    """The random numbers of one text: a stream of its own for each (seed, prompt, sample)."""
    mixed = np.random.SeedSequence([seed, prompt, sample]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(mixed))
