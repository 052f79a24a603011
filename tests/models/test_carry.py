import pytest
import torch
from torch import nn

from lmlab.models.carry import Carry


class Positions(nn.Module):
    """Hidden: a running sum of learned position and token vectors; refuses positions past max_context."""

    recurrent, slides = False, False

    def __init__(self, max_context: int):
        super().__init__()
        self.max_context = max_context
        self.positions = nn.Parameter(torch.randn(max_context, 4))
        self.embed = nn.Embedding(5, 4)

    def forward(self, tokens, state=None):
        past = torch.zeros(len(tokens), 0, dtype=torch.long) if state is None else state[0] - 1
        text = torch.cat([past, tokens], 1)
        if text.shape[1] > self.max_context:
            raise ValueError(f"{text.shape[1]} tokens exceed max_context={self.max_context}")
        hidden = (self.embed(text) * self.positions[: text.shape[1]]).cumsum(1)
        return hidden[:, past.shape[1] :], (text + 1,)


def strided(model: Positions, tokens: torch.Tensor) -> torch.Tensor:
    """Windows that overlap by half, each scoring what the one before did not."""
    window, parts = model.max_context, []
    start = done = 0
    while done < tokens.shape[1]:
        hidden, _ = model(tokens[:, start : start + window])
        parts.append(hidden[:, done - start :])
        done = start + hidden.shape[1]
        start = done - window // 2
    return torch.cat(parts, 1)


@pytest.mark.parametrize("window", [1, 2, 5, 8])
@pytest.mark.parametrize("widths", [[30], [1] * 30, [7, 1, 1, 13, 8]])
def test_past_learned_positions_the_context_slides_by_half_however_the_text_is_cut(window, widths):
    model, tokens = Positions(window), torch.randint(5, (3, 30))
    carry = Carry(model)
    hidden = torch.cat([carry.read(part) for part in tokens.split(widths, 1)], 1)
    torch.testing.assert_close(hidden, strided(model, tokens))


def test_rows_are_kept_reordered_and_repeated_with_all_that_they_carry():
    model, tokens = Positions(4), torch.randint(5, (3, 9))
    carry = Carry(model)
    carry.read(tokens[:, :4])
    carry.keep(torch.tensor([2, 0]))
    carry.expand(2)
    rows = tokens[[2, 2, 0, 0]]
    torch.testing.assert_close(carry.read(rows[:, 4:]), strided(model, rows)[:, 4:])
