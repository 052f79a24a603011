"""Beam search: the likeliest text, approximately."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lmlab.generation.decoding import NOT_A_NUMBER, Decoding
from lmlab.generation.row import Row
from lmlab.generation.sampling import PREFILL, Chooser, seen_tokens
from lmlab.models.carry import Carry, device_of
from lmlab.types import for_float64


@dataclass(frozen=True)
class Beam:
    """A candidate: `row` names the beam it continues, `score` is its penalised log-probability."""

    row: int
    ids: tuple[int, ...]
    score: float
    log_prob: float

    def rank(self, length_penalty: float) -> float:
        return self.score / len(self.ids) ** length_penalty


class BeamSearch:
    """Keeps the `num_beams` best unfinished texts, and the best finished ones, of one prompt.

    Of the best continuations, those that end count as finished if they are among the first num_beams, as in
    `transformers`; as many are looked at as leave num_beams that go on. Ends when no unfinished text can overtake the
    finished ones any more.
    """

    def __init__(self, model: nn.Module, tokenizer, decoding: Decoding, eos_id: int | None):
        self.model, self.tokenizer, self.decoding, self.eos_id = model, tokenizer, decoding, eos_id
        self.device = device_of(model)
        self.chooser = Chooser(model, tokenizer, decoding, self.device)

    def run(self, prompt: list[int]) -> list[Row]:
        """The num_samples best texts, best first.

        Fewer where the vocabulary and max_new_tokens do not allow so many.
        """
        d, carry = self.decoding, Carry(self.model)
        self.prompt = prompt
        known = [self.tokenizer.start_id, *prompt]
        for i in range(0, len(known), PREFILL):
            hidden = carry.read(torch.tensor([known[i : i + PREFILL]], device=self.device))[:, -1:]
        beams, done = [Beam(0, (), 0.0, 0.0)], []
        while True:
            beams, ended = self._step(hidden, beams)
            done = sorted([*done, *ended], key=self._rank, reverse=True)[: d.num_beams]
            if not beams or len(beams[0].ids) == d.max_new_tokens or self._is_settled(beams, done):
                break
            carry.keep(torch.tensor([b.row for b in beams], device=self.device))
            hidden = carry.read(torch.tensor([[b.ids[-1]] for b in beams], device=self.device))
        best = sorted([*done, *beams], key=self._rank, reverse=True)[: d.num_samples]
        return [self._row(beam) for beam in best]

    def _step(self, hidden: Tensor, beams: list[Beam]) -> tuple[list[Beam], list[Beam]]:
        """The beams one token on, and those that ended with it."""
        k, going, ended = self.decoding.num_beams, [], []
        for place, beam in enumerate(self._candidates(hidden, beams)):
            if self._ends(beam):
                ended += [beam] if place < k else []
            else:
                going.append(beam)
            if len(going) == k:
                break
        return going, ended

    def _candidates(self, hidden: Tensor, beams: list[Beam]) -> Iterator[Beam]:
        """All continuations that are not forbidden, best first. Raises ValueError where the model gives NaN."""
        log_probs = self.model.head.log_probs(hidden)[:, 0].float()
        texts = [[*self.prompt, *b.ids] for b in beams]
        seen = seen_tokens(texts, self.decoding, self.model.vocab_size, self.device)
        scores = self.chooser.allow(log_probs, seen)
        total = _added(scores, [b.score for b in beams])
        exact = _added(log_probs, [b.log_prob for b in beams])
        told: set[int] = set()
        # Twice as many leave enough where each beam has one token that ends it, <eos>; of a stop string more may.
        n = 2 * self.decoding.num_beams
        while len(told) < total.numel():
            best = total.flatten().topk(min(n, total.numel()))
            values, log_prob = best.values.tolist(), exact.flatten()[best.indices].tolist()
            for value, exact_value, index in zip(values, log_prob, best.indices.tolist(), strict=True):
                # The largest of all, by topk.
                if value != value:
                    raise ValueError(NOT_A_NUMBER)
                if value == -torch.inf:
                    return
                if index not in told:
                    told.add(index)
                    row, id = divmod(index, total.shape[1])
                    yield Beam(row, (*beams[row].ids, id), value, exact_value)
            n *= 2

    def _rank(self, beam: Beam) -> float:
        return beam.rank(self.decoding.length_penalty)

    def _is_settled(self, beams: list[Beam], done: list[Beam]) -> bool:
        """Can no beam enter the finished ones any more? Scores only fall, lengths only grow."""
        d = self.decoding
        length = d.max_new_tokens if d.length_penalty > 0 else len(beams[0].ids)
        return len(done) == d.num_beams and beams[0].score / length**d.length_penalty <= self._rank(done[-1])

    def _ends(self, beam: Beam) -> bool:
        if beam.ids[-1] == self.eos_id:
            return True
        return bool(self.decoding.stop) and self._row(beam).stopped_because == "stop"

    def _row(self, beam: Beam) -> Row:
        """The beam as a finished text."""
        row = Row(self.tokenizer, self.prompt, self.decoding, self.eos_id)
        for id in beam.ids:
            row.push(id, 0.0)
        row.log_prob = beam.log_prob
        return row


def _added(scores: Float[Tensor, "B V"], known: Sequence[float]) -> Float[Tensor, "B V"]:
    """Each row's scores and what its beam has, float64."""
    exact = for_float64(scores).double()
    return exact + torch.tensor(known, dtype=torch.float64, device=exact.device)[:, None]
