"""What any reply of the language model may hold besides the answer, and the error for one without an answer.

Knows the tokens and thoughts that servers leave in a reply, and the two forms in which groups are asked
for. Must not know what was asked, nor how an answer is read.
"""

from __future__ import annotations

import re
from typing import Literal

Form = Literal["json", "text"]

TOKENS = re.compile(r"</?s>|<\|[^|<>\s]{1,40}\|>|<(?:end_of_turn|eos|pad|unk)>")
"""A chat template's own tokens, which some servers leave in a reply."""
THOUGHT = re.compile(r"<think>.*?(?:</think>|\Z)|\A(?:(?!<think>).)*?</think>", re.S)
"""What a reasoning model thinks before its reply; a thought that does not end is all there is."""


class Unreadable(ValueError):
    """A reply that cannot be used. The text says what was wrong, in words for the model that wrote it."""
