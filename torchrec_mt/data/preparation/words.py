"""Text into tokens, for all distinct chunks (runs without blanks) of a column at once.

A word is a run of letters, marks and digits of any script, after Unicode normalisation (NFKC) and case folding. A word
gives its stem as token of kind "word", then the character n-grams of `<word>` (unstemmed, marked at its ends) as tokens
of kind "ngram". Python's own Unicode tables decide, not an engine's regular expressions, so that every engine agrees.

All work is done on one long string or array, a block of chunks at a time: nothing loops over words but the stemmer,
in C, and what stays of a catalogue with millions of distinct words is 4 bytes a token, and the distinct tokens.
"""

import sys
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import Stemmer

from torchrec_mt.data.preparation.ragged import Ragged
from torchrec_mt.schema import TextFeature

WORD, NGRAM = "word", "ngram"
_BLOCK = 1 << 22
"""Bytes of text at a time: a few hundred megabytes of work."""
_WINDOWS = 1 << 20


@dataclass(frozen=True)
class Tokens:
    """Distinct tokens: `kind` and `value` (strings), and `bags`: for each chunk its tokens, as numbers into them."""

    kind: pa.Array
    value: pa.Array
    bags: Ragged


@cache
def _word_codes() -> np.ndarray:
    """For every code point: is it a letter, a mark or a digit (`[\\p{L}\\p{M}\\p{N}]`)? A line break stays too."""
    codes = np.fromiter((unicodedata.category(chr(code))[0] in "LMN" for code in range(sys.maxunicode + 1)), bool)
    codes[ord("\n")] = True
    return codes


def normalise(text: str) -> str:
    """Case-folded NFKC with a blank for everything that is no part of a word; line breaks stay."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    codes = np.frombuffer(folded.encode("utf-32-le"), np.uint32)
    return np.where(_word_codes()[codes], codes, ord(" ")).astype(np.uint32).tobytes().decode("utf-32-le")


def tokenise(chunks: pa.Array | pa.ChunkedArray, feature: TextFeature) -> Tokens:
    """Tokens of distinct chunks (strings without line breaks)."""
    blocks = [_tokenise_block(block, feature) for block in _blocks(chunks)]
    stems, of_stem = _numbered([block.stems for block in blocks])
    grams, of_gram = _numbered([block.grams for block in blocks])
    values = [
        np.concatenate([stem, gram + np.int32(len(stems))])[block.bags.values]
        for block, stem, gram in zip(blocks, of_stem, of_gram, strict=True)
    ]
    lengths = [block.bags.lengths for block in blocks]
    return Tokens(
        kind=pa.concat_arrays([pa.repeat(WORD, len(stems)), pa.repeat(NGRAM, len(grams))]),
        value=pa.concat_arrays([stems, grams]),
        bags=Ragged.of_lengths(
            np.concatenate([np.zeros(0, np.int64), *lengths]), np.concatenate([np.zeros(0, np.int32), *values])
        ),
    )


def _blocks(chunks: pa.Array | pa.ChunkedArray) -> Iterator[pa.Array | pa.ChunkedArray]:
    """Chunks in order, about `_BLOCK` bytes of text at a time."""
    ends = np.cumsum(np.asarray(pc.binary_length(chunks), np.int64))
    start = 0
    while start < len(ends):
        reached = ends[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, reached + _BLOCK, "right")))
        yield chunks[start:stop]
        start = stop


def _numbered(parts: list[pa.Array]) -> tuple[pa.Array, list[np.ndarray]]:
    """The distinct strings of all parts, and per part the number of each of its strings: int32."""
    encoded = pa.chunked_array(parts, pa.string()).dictionary_encode().chunks
    # One dictionary serves all chunks of an encoded array; empty chunks are dropped.
    distinct = encoded[0].dictionary if encoded else pa.array([], pa.string())
    numbers = [chunk.indices.to_numpy(zero_copy_only=False) for chunk in encoded]
    ends = np.cumsum([len(part) for part in parts], dtype=np.int64)
    return distinct, np.split(np.concatenate([np.zeros(0, np.int32), *numbers]), ends)[:-1]


@dataclass(frozen=True)
class _Block:
    """Some chunks' tokens, numbered within the block: distinct stems first, then distinct n-grams."""

    stems: pa.Array
    grams: pa.Array
    bags: Ragged


def _tokenise_block(chunks: pa.Array | pa.ChunkedArray, feature: TextFeature) -> _Block:
    lines = pa.array(normalise("\n".join(chunks.to_pylist())).split("\n"), pa.string())
    split = pc.split_pattern(lines, " ")
    flat = split.flatten().dictionary_encode()
    words = flat.dictionary
    numbers = flat.indices.to_numpy(zero_copy_only=False).astype(np.int64)
    of_chunk = Ragged.of_lengths(split.value_lengths().to_numpy(zero_copy_only=False), numbers)
    blank = pc.equal(words, "").to_numpy(zero_copy_only=False)
    of_chunk = of_chunk.kept(~blank[numbers])
    stems, grams, of_word = _word_tokens(words, feature)
    bags = of_word.take(of_chunk.values).concatenated(np.repeat(np.arange(len(chunks)), of_chunk.lengths), len(chunks))
    return _Block(stems, grams, bags)


def _word_tokens(words: pa.Array, feature: TextFeature) -> tuple[pa.Array, pa.Array, Ragged]:
    """Distinct stems and n-grams of distinct words, and each word's tokens in order."""
    stems = pa.array(_stems(words.to_pylist(), feature.stem), pa.string()).dictionary_encode()
    stem_of_word = stems.indices.to_numpy(zero_copy_only=False).astype(np.int32)
    parts = [Ragged.of_lengths(np.ones(len(words), np.int64), stem_of_word)]
    values = [pa.array([], pa.string())]
    first = len(stems.dictionary)
    for length in feature.char_ngrams:
        grams, bags = _ngrams(words, length)
        parts.append(Ragged(bags.offsets, bags.values + np.int32(first)))
        values.append(grams)
        first += len(grams)
    return stems.dictionary, pa.concat_arrays(values), _side_by_side(parts)


def _stems(words: list[str], language: str) -> list[str]:
    if language == "none":
        return words
    stems = Stemmer.Stemmer(language, 0).stemWords(words)
    return [stem or word for stem, word in zip(stems, words, strict=True)]


def _ngrams(words: pa.Array, length: int) -> tuple[pa.Array, Ragged]:
    """Distinct character n-grams of `<word>`, and for each word its n-grams in order."""
    marked = pc.binary_join_element_wise("<", words, ">", "")
    sizes = pc.utf8_length(marked).to_numpy(zero_copy_only=False).astype(np.int64)
    counts = np.maximum(sizes - length + 1, 0)
    codes = np.frombuffer("".join(marked.to_pylist()).encode("utf-32-le"), np.uint32)
    starts = Ragged.of_lengths(sizes, codes).offsets[:-1]
    bags = Ragged.of_lengths(counts, codes)
    at = np.arange(bags.offsets[-1]) + np.repeat(starts - bags.offsets[:-1], counts)
    if len(at) == 0:
        return pa.array([], pa.string()), Ragged(bags.offsets, np.zeros(0, np.int32))
    windows = np.lib.stride_tricks.sliding_window_view(codes, length)
    # In parts: of a longer array Arrow makes several, by its own rule.
    parts = [windows[at[start : start + _WINDOWS]] for start in range(0, len(at), _WINDOWS)]
    grams, numbers = _numbered([pa.array(part.view(f"<U{length}").ravel(), pa.string()) for part in parts])
    return grams, Ragged(bags.offsets, np.concatenate(numbers))


def _side_by_side(parts: list[Ragged]) -> Ragged:
    """Joins row i of every part, in the order of the parts."""
    joined = Ragged.of_lengths(np.sum([part.lengths for part in parts], axis=0), np.zeros(0))
    values = np.empty(joined.offsets[-1], np.int32)
    at = joined.offsets[:-1].copy()
    for part in parts:
        values[np.arange(len(part.values)) + np.repeat(at - part.offsets[:-1], part.lengths)] = part.values
        at += part.lengths
    return Ragged(joined.offsets, values)
