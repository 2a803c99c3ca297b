"""What plugins import of `promptbench.clip.prompts`, at the path that they have always used."""

from promptbench.clip.prompts import (
    INIT_STD,
    MAX_WORDS,
    Sentences,
    arrange,
    arrangement,
    context_length,
    from_words,
    initial_context,
    join,
    name_lengths,
    random_context,
    readable,
    sentence_tokens,
    sentences,
    words_for,
    words_of,
)

__all__ = [
    "INIT_STD",
    "MAX_WORDS",
    "Sentences",
    "arrange",
    "arrangement",
    "context_length",
    "from_words",
    "initial_context",
    "join",
    "name_lengths",
    "random_context",
    "readable",
    "sentence_tokens",
    "sentences",
    "words_for",
    "words_of",
]
