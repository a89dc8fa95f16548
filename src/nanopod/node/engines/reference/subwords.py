"""Words to token ids: byte-pair encoding and WordPiece."""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from typing import Any, Protocol

_CACHE_WORDS_MAX = 20_000
_CACHE_WORD_CHARS_MAX = 48


class SubwordModel(Protocol):
    """What both models offer."""

    vocab: Mapping[str, int]

    def encode_word(self, word: str) -> tuple[int, ...]:
        """Token ids of one pre-tokenized word."""
        ...


def _pair(merge: object) -> tuple[str, str]:
    """A merge rule in either notation of the file: "a b" or ["a", "b"]."""
    parts = merge.split(" ") if isinstance(merge, str) else merge
    if not isinstance(parts, list) or len(parts) != 2:
        raise ValueError(f"tokenizer.json: merge {merge!r} is not a pair")
    return str(parts[0]), str(parts[1])


class Bpe:
    """Byte-pair encoding (Sennrich et al. 2016): join the lowest-ranked neighbouring pair until none is left."""

    def __init__(self, node: Mapping[str, Any]) -> None:
        """Read the `model` node of a `tokenizer.json`; raises `ValueError` when a merge names unknown tokens."""
        self.vocab: dict[str, int] = node["vocab"]
        self._prefix: str = node.get("continuing_subword_prefix") or ""
        self._suffix: str = node.get("end_of_word_suffix") or ""
        self._ignore_merges = bool(node.get("ignore_merges", False))
        self._fuse_unknown = bool(node.get("fuse_unk", False))
        unknown = node.get("unk_token")
        self._unknown = None if unknown is None else self.vocab.get(unknown)
        self._merges: dict[tuple[int, int], tuple[int, int]] = {}
        for rank, merge in enumerate(node["merges"]):
            left, right = _pair(merge)
            try:
                joined = self.vocab[left + right[len(self._prefix) :]]
                self._merges[self.vocab[left], self.vocab[right]] = (rank, joined)
            except KeyError as error:
                raise ValueError(
                    f"tokenizer.json: merge {merge!r} names {error.args[0]!r}, not in the vocabulary"
                ) from error
        self._bytes: list[int | None] | None = None
        if node.get("byte_fallback"):
            self._bytes = [self.vocab.get(f"<0x{b:02X}>") for b in range(256)]
        self._cache: dict[str, tuple[int, ...]] = {}

    def encode_word(self, word: str) -> tuple[int, ...]:
        """Token ids of `word`; short words are remembered."""
        found = self._cache.get(word)
        if found is None:
            found = tuple(self._encode(word))
            if len(word) <= _CACHE_WORD_CHARS_MAX:
                if len(self._cache) >= _CACHE_WORDS_MAX:
                    self._cache.clear()
                self._cache[word] = found
        return found

    def _encode(self, word: str) -> list[int]:
        if self._ignore_merges and word in self.vocab:
            return [self.vocab[word]]
        return self._join(self._symbols(word))

    def _symbols(self, word: str) -> list[int]:
        """One id per character, or per byte where the character is unknown and the model falls back to bytes."""
        out: list[int] = []
        unknown_before = False
        last = len(word) - 1
        for at, char in enumerate(word):
            name = (self._prefix if at else "") + char + (self._suffix if at == last else "")
            token = self.vocab.get(name)
            if token is not None:
                out.append(token)
                unknown_before = False
                continue
            if self._bytes is not None:
                ids = [self._bytes[b] for b in name.encode("utf-8", "replace")]
                known = [i for i in ids if i is not None]
                if len(known) == len(ids):
                    out.extend(known)
                    unknown_before = False
                    continue
            if self._unknown is not None and not (unknown_before and self._fuse_unknown):
                out.append(self._unknown)
            unknown_before = True
        return out

    def _join(self, ids: list[int]) -> list[int]:
        """Apply merges by rank, leftmost first, on a linked list with a heap of candidate pairs."""
        merges = self._merges
        count = len(ids)
        heap = [(*rule, at) for at in range(count - 1) if (rule := merges.get((ids[at], ids[at + 1]))) is not None]
        if not heap:
            return ids
        heapq.heapify(heap)
        after = [*range(1, count), -1]
        before = list(range(-1, count - 1))
        alive = [True] * count
        while heap:
            rank, joined, at = heapq.heappop(heap)
            right = after[at]
            # A pair that changed since it was queued is stale.
            if not alive[at] or right < 0 or merges.get((ids[at], ids[right])) != (rank, joined):
                continue
            ids[at] = joined
            alive[right] = False
            after[at] = after[right]
            if after[right] >= 0:
                before[after[right]] = at
                rule = merges.get((joined, ids[after[right]]))
                if rule is not None:
                    heapq.heappush(heap, (*rule, at))
            left = before[at]
            if left >= 0:
                rule = merges.get((ids[left], joined))
                if rule is not None:
                    heapq.heappush(heap, (*rule, left))
        return [token for token, lives in zip(ids, alive, strict=True) if lives]


class WordPiece:
    """BERT's greedy longest-match-first pieces; a word with an unmatched rest is the unknown token as a whole."""

    def __init__(self, node: Mapping[str, Any]) -> None:
        """Read the `model` node of a `tokenizer.json`."""
        self.vocab: dict[str, int] = node["vocab"]
        self._prefix = str(node.get("continuing_subword_prefix", "##"))
        self._chars_max = int(node.get("max_input_chars_per_word", 100))
        unknown = str(node.get("unk_token", "[UNK]"))
        if unknown not in self.vocab:
            raise ValueError(f"tokenizer.json: unk_token {unknown!r} is not in the vocabulary")
        self._unknown = self.vocab[unknown]
        self._longest = max((len(token) for token in self.vocab), default=1)
        self._cache: dict[str, tuple[int, ...]] = {}

    def encode_word(self, word: str) -> tuple[int, ...]:
        """Token ids of `word`."""
        found = self._cache.get(word)
        if found is None:
            found = tuple(self._encode(word))
            if len(word) <= _CACHE_WORD_CHARS_MAX:
                if len(self._cache) >= _CACHE_WORDS_MAX:
                    self._cache.clear()
                self._cache[word] = found
        return found

    def _encode(self, word: str) -> list[int]:
        if len(word) > self._chars_max:
            return [self._unknown]
        out: list[int] = []
        at = 0
        while at < len(word):
            lead = self._prefix if at else ""
            for end in range(min(len(word), at + self._longest), at, -1):
                token = self.vocab.get(lead + word[at:end])
                if token is not None:
                    out.append(token)
                    at = end
                    break
            else:
                return [self._unknown]
        return out


def build_model(node: Mapping[str, Any]) -> Bpe | WordPiece:
    """The subword model of a `tokenizer.json`; raises `ValueError` naming its type."""
    kind = node.get("type")
    # Files from before the field existed are recognised by what they hold.
    if kind == "BPE" or (kind is None and "merges" in node):
        return Bpe(node)
    if kind == "WordPiece" or (kind is None and "max_input_chars_per_word" in node):
        return WordPiece(node)
    raise ValueError(f"tokenizer.json: model type {kind!r} is not supported; known: BPE, WordPiece")
