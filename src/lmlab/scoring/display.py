"""A scored text for people, in a terminal or a notebook."""

import codecs
import math
import unicodedata

from rich.console import Group
from rich.table import Table
from rich.text import Text

from lmlab.scoring.score import TextScore

# Background by surprisal: up to so many bits, that colour.
SHADES = ((1, "#ffffff"), (2, "#fff3d6"), (4, "#ffe0a3"), (6, "#ffc27a"), (9, "#ff9e6b"), (13, "#f4795f"))
DARKEST = "#dd5555"
# Tokens that the table lists: it takes a millisecond for each.
SHOWN = 1_000


def as_table(score: TextScore) -> Group:
    """For a terminal or a notebook: the text and its tokens, shaded by surprisal, and the sums. Says it all without
    colours too."""
    table = Table("token", box=None, padding=(0, 1), header_style="bold")
    for heading in ("ln P", "P", "rank"):
        table.add_column(heading, justify="right")
    if any(t.alternatives for t in score.tokens):
        table.add_column("likeliest")
    for t in score.tokens[:SHOWN]:
        cells = [f"{t.log_prob:.3f}", _percent(t.log_prob), str(t.rank)]
        if t.alternatives:
            cells.append("  ".join(f"{_visible(a.token)} {_percent(a.log_prob)}" for a in t.alternatives))
        table.add_row(Text(_visible(t.token), _style(t.log_prob)), *map(Text, cells))
    sums = score.likelihood
    total = f"ln P(W) = {score.log_prob:.3f} nats over {sums.tokens} tokens, {sums.bytes} bytes: "
    derived = f"nll {_number(sums.nll, 4)}  ppl {_number(sums.ppl, 2)}  bits per byte {_number(sums.bpb, 4)}"
    left = len(score.tokens) - SHOWN
    more = [Text(f"and {left:,} more: format=json has all")] if left > 0 else []
    return Group(_shaded(score), Text(), table, *more, Text(), _legend(), Text(total + derived))


def _number(value: float, digits: int) -> str:
    """Of no token, or no byte, there is no mean."""
    return "-" if math.isnan(value) else f"{value:.{digits}f}"


def _shaded(score: TextScore) -> Text:
    """The source, each character shaded by the surprisal of the token that completes it and of its other bytes."""
    shaded, source, at, log_prob = Text(), score.text.encode(), 0, 0.0
    decoder = codecs.getincrementaldecoder("utf-8")()
    for t in score.tokens:
        log_prob += t.log_prob
        characters = decoder.decode(source[at : at + t.n_bytes])
        at += t.n_bytes
        if characters:
            shaded.append("".join(c if c == "\n" else _printable(c) for c in characters), _style(log_prob))
            log_prob = 0.0
    # White space at the end that no token claims.
    return shaded.append(source[at:].decode(errors="replace"))


def _legend() -> Text:
    legend = Text("bits:")
    for bits, shade in SHADES:
        legend.append(f" <{bits} ", f"black on {shade}")
    return legend.append(" more ", f"black on {DARKEST}")


def _style(log_prob: float) -> str:
    bits = -log_prob / math.log(2)
    return "black on " + next((shade for most, shade in SHADES if bits < most), DARKEST)


def _percent(log_prob: float) -> str:
    p = 100 * math.exp(log_prob)
    return f"{p:.1f}%" if p >= 1 else f"{p:.2g}%"


def _visible(token: str) -> str:
    """A token on one line, its spaces and control characters to be seen."""
    return "".join("␣" if c == " " else _printable(c) for c in token)


def _printable(c: str) -> str:
    # What a text holds must not steer the terminal.
    spaced = unicodedata.category(c) == "Zs"
    return c if spaced or c.isprintable() else c.encode("unicode_escape").decode()
