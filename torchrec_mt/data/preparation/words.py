"""Text into tokens, for all distinct chunks (runs without blanks) of a column at once.

A word is a run of letters, marks and digits of any script, after Unicode normalisation (NFKC) and case folding. A word
gives its stem as token of kind "word", then the character n-grams of `<word>` (unstemmed, marked at its ends) as tokens
of kind "ngram". Python's own Unicode tables decide, not an engine's regular expressions, so that every engine agrees.

All work is done on one long string or array: nothing loops over words but the stemmer, in C.
"""

import sys
import unicodedata
from dataclasses import dataclass
from functools import cache

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import Stemmer

from torchrec_mt.data.preparation.ragged import Ragged
from torchrec_mt.schema import TextFeature

WORD, NGRAM = "word", "ngram"


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


def tokenise(chunks: pa.Array, feature: TextFeature) -> Tokens:
    """Tokens of distinct chunks (strings without line breaks)."""
    lines = pa.array(normalise("\n".join(chunks.to_pylist())).split("\n") if len(chunks) else [], pa.string())
    split = pc.split_pattern(lines, " ")
    flat = split.flatten().dictionary_encode()
    words = flat.dictionary
    numbers = flat.indices.to_numpy(zero_copy_only=False).astype(np.int64)
    of_chunk = Ragged.of_lengths(split.value_lengths().to_numpy(zero_copy_only=False), numbers)
    blank = pc.equal(words, "").to_numpy(zero_copy_only=False)
    of_chunk = of_chunk.kept(~blank[numbers])
    kind, value, of_word = _word_tokens(words, feature)
    return Tokens(
        kind,
        value,
        of_word.take(of_chunk.values).concatenated(np.repeat(np.arange(len(chunks)), of_chunk.lengths), len(chunks)),
    )


def _word_tokens(words: pa.Array, feature: TextFeature) -> tuple[pa.Array, pa.Array, Ragged]:
    """Distinct tokens of distinct words, and each word's tokens in order."""
    stems = pa.array(_stems(words.to_pylist(), feature.stem), pa.string()).dictionary_encode()
    values, kinds = [stems.dictionary], [pa.repeat(WORD, len(stems.dictionary))]
    parts = [
        Ragged.of_lengths(np.ones(len(words), np.int64), stems.indices.to_numpy(zero_copy_only=False).astype(np.int64))
    ]
    first = len(stems.dictionary)
    for length in feature.char_ngrams:
        grams, bags = _ngrams(words, length)
        parts.append(Ragged(bags.offsets, bags.values + first))
        values.append(grams)
        kinds.append(pa.repeat(NGRAM, len(grams)))
        first += len(grams)
    return pa.concat_arrays(kinds), pa.concat_arrays(values), _side_by_side(parts)


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
        return pa.array([], pa.string()), Ragged(bags.offsets, np.zeros(0, np.int64))
    windows = np.lib.stride_tricks.sliding_window_view(codes, length)[at]
    grams = pa.array(np.ascontiguousarray(windows).view(f"<U{length}").ravel(), pa.string()).dictionary_encode()
    return grams.dictionary, Ragged(bags.offsets, grams.indices.to_numpy(zero_copy_only=False).astype(np.int64))


def _side_by_side(parts: list[Ragged]) -> Ragged:
    """Joins row i of every part, in the order of the parts."""
    joined = Ragged.of_lengths(np.sum([part.lengths for part in parts], axis=0), np.zeros(0))
    values = np.empty(joined.offsets[-1], np.int64)
    at = joined.offsets[:-1].copy()
    for part in parts:
        values[np.arange(len(part.values)) + np.repeat(at - part.offsets[:-1], part.lengths)] = part.values
        at += part.lengths
    return Ragged(joined.offsets, values)
