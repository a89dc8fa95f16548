"""What an OpenAI request is worth in units of load before anybody has tokenized it: prompt tokens, and the output's.

The output counts as the running median of what the endpoint's outputs have been, and no more than the request allows.
"""

from __future__ import annotations

import re
from typing import Any, Final

TOKEN_BYTES: Final = 4
"""A token's size where no tokenizer is at hand."""
MEDIA_BYTES: Final = 4096
"""What a picture or sound inside a body is taken to be, however many bytes it has."""
_MEDIA: Final = re.compile(rb";base64,[A-Za-z0-9+/=\\_-]{256,}")


def load_of(body: bytes, generation: bool, most_tokens: Any, median: float) -> float:
    """Units of load of a request; `most_tokens`: what it allows for its output, if that is a number."""
    size = len(body)
    if size > MEDIA_BYTES and b";base64," in body:
        size = _without_media(body)
    if not generation:
        return size / TOKEN_BYTES
    if type(most_tokens) is int and 0 <= most_tokens < median:
        return size / TOKEN_BYTES + most_tokens
    return size / TOKEN_BYTES + median


def _without_media(body: bytes) -> int:
    rest, count = _MEDIA.subn(b"", body)
    return len(rest) + count * MEDIA_BYTES
