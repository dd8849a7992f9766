"""Token counts of texts, through the optional package `tokenizers`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from workloads.base import bad


class TokenCounter:
    """Counts tokens with a tokenizer given by file or by name.

    Args:
        path: the trace file that needs it, for error messages.
        tokenizer: a `tokenizer.json`, or a name on the Hugging Face hub (downloaded).
    """

    def __init__(self, path: Path, tokenizer: str | None) -> None:
        if tokenizer is None:
            raise bad(path, "holds text; give a tokenizer: a tokenizer.json or a Hugging Face name")
        self._tokenizer: Any = _load(tokenizer)

    def __call__(self, texts: Sequence[str], special_tokens: bool) -> list[int]:
        """Return the number of tokens of each text, with or without BOS and the like."""
        encoded = self._tokenizer.encode_batch(list(texts), add_special_tokens=special_tokens)
        return [len(one.ids) for one in encoded]


def _load(tokenizer: str) -> Any:
    key = f"tokenizer {tokenizer}"
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise bad(key, "needs `pip install bucketsim[tokenize]`") from error
    is_file = Path(tokenizer).is_file()
    try:
        loaded = Tokenizer.from_file(tokenizer) if is_file else Tokenizer.from_pretrained(tokenizer)
    except Exception as error:  # the Rust side raises bare Exception for every failure
        raise bad(key, f"not a tokenizer.json, and not found by name: {error}") from error
    loaded.no_truncation()
    loaded.no_padding()
    return loaded
