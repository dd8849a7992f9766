"""JSON files as a stream of entries: an array, JSON lines or one object, in the memory of one."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from workloads.base import BadInput, Limits, bad
from workloads.streams import opened

CHUNK_BYTES = 1 << 20
MAX_ENTRY_CHARS = 256 << 20
"""Longest entry. A detailed vLLM result is one entry of about 100 bytes a token."""


def json_entries(path: Path, limits: Limits) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (row, object); row is the number of the entry, from 1."""
    with opened(path, limits) as stream:
        for row, entry in enumerate(_Text(stream, path).values(), start=1):
            if not isinstance(entry, dict):
                raise bad(path, f"expected a JSON object, found {json.dumps(entry)[:40]}", row)
            yield row, entry


class _Text:
    """The part of a JSON file that is not parsed yet."""

    def __init__(self, stream: BinaryIO, path: Path) -> None:
        self._stream = stream
        self._path = path
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self._json = json.JSONDecoder()
        self._text = ""
        self._at = 0
        self._row = 1
        self._undecodable = False

    def values(self) -> Iterator[Any]:
        """Yield the elements of a top-level array, or top-level values one after another."""
        if self._peek() != "[":
            while self._peek():
                yield self._value()
            return
        self._at += 1
        if self._peek() == "]":
            return
        while True:
            yield self._value()
            separator = self._peek()
            self._at += 1
            if separator == "]":
                break
            if separator != ",":
                raise self._error("the array is cut off or lacks a comma")
            self._peek()
        if self._peek():
            raise self._error("text after the end of the array")

    def _value(self) -> Any:
        while True:
            try:
                value, self._at = self._json.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                # Perhaps only cut off: take more text and try again.
                if len(self._text) - self._at > MAX_ENTRY_CHARS or not self._fill():
                    raise self._error(error.msg) from error
            except RecursionError as error:
                raise self._error("nested too deeply") from error
            except ValueError as error:  # an integer of thousands of digits
                raise self._error(str(error)) from error
            else:
                self._row += 1
                return value

    def _peek(self) -> str:
        """Return the next character that is not white space, without taking it; "" at the end."""
        while True:
            while self._at < len(self._text):
                if not self._text[self._at].isspace():
                    return self._text[self._at]
                self._at += 1
            if not self._fill():
                if self._undecodable:
                    raise self._error("")
                return ""

    def _fill(self) -> bool:
        """Append text, as much again as is left; False at the end of the file."""
        if self._undecodable:
            return False
        left = self._text[self._at :]
        data = self._stream.read(max(CHUNK_BYTES, len(left)))
        try:
            more = self._decoder.decode(data, final=not data)
        except UnicodeDecodeError as error:
            # What stands before the bad byte is parsed first, so that the error has its row.
            self._undecodable = True
            more = error.object[: error.start].decode()
        self._text, self._at = left + more, 0
        return bool(more)

    def _error(self, reason: str) -> BadInput:
        message = "not UTF-8" if self._undecodable else f"not valid JSON: {reason}"
        return bad(self._path, message, self._row)
