"""What scoring yields: tokens with their log-probabilities, and their sum."""

from dataclasses import dataclass
from typing import NamedTuple

from lmlab.metrics import Likelihood


class Alternative(NamedTuple):
    """A token that could have come next; log_prob in nats."""

    token: str
    id: int
    log_prob: float


class TokenScore(NamedTuple):
    """One token of a text: ln P(token | what precedes it) in nats.

    rank: 1 where no token was likelier. n_bytes: of the source; a closing <eos> has 0, or those of the white space
    before it that no token claims.
    alternatives: the likeliest tokens at its place, likeliest first; the token itself may be among them.
    """

    token: str
    id: int
    log_prob: float
    rank: int
    n_bytes: int
    alternatives: tuple[Alternative, ...]


@dataclass(frozen=True)
class TextScore:
    """A text's tokens and its likelihood (nll, ppl, bpb and the other derived numbers)."""

    text: str
    tokens: tuple[TokenScore, ...]
    likelihood: Likelihood

    @property
    def log_prob(self) -> float:
        """ln P(W), nats."""
        return -self.likelihood.nats


def as_json(score: TextScore) -> dict:
    """Plain data: the text, log_prob, the sums and what is derived from them, the tokens."""
    tokens = [t._asdict() | {"alternatives": [a._asdict() for a in t.alternatives]} for t in score.tokens]
    return {"text": score.text, "log_prob": score.log_prob} | score.likelihood.as_dict() | {"tokens": tokens}
