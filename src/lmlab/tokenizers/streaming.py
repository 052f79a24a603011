"""Text as it is generated, token by token."""

import codecs
from collections.abc import Iterable
from operator import index
from typing import SupportsIndex

from lmlab.tokenizers.protocol import Tokenizer


class StreamDecoder:
    """What has been pushed, put together, equals `decode` of all ids; bytes of an unfinished character wait.

    Push a prompt's ids first (and drop what comes back) to continue it with the right space.
    """

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._previous: int | None = None

    def push(self, id: SupportsIndex) -> str:
        """The text that this token completes, often none."""
        return self.push_all((id,))

    def push_all(self, ids: Iterable[SupportsIndex]) -> str:
        """The same of several tokens, faster than one by one."""
        tokens = list(map(index, ids))
        data = b"".join(map(self._tokenizer.to_bytes, tokens, [self._previous, *tokens[:-1]]))
        self._previous = tokens[-1] if tokens else self._previous
        return self._decoder.decode(data)

    def flush(self) -> str:
        """What is left at the end: U+FFFD where a character was never finished."""
        return self._decoder.decode(b"", final=True)
