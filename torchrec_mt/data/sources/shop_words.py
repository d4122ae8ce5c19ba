"""The synthetic shop's language: made-up words, titles and query texts put together from them.

Titles and queries share most words. Some words for a category or a style are used in queries only, and query words are
now and then misspelt or cut off, so that matching words alone cannot find everything.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

_ONSETS = "b br c ch d dr f fl g gr h j k kl l m n p pr r s sh st t tr v w y z".split()  # noqa: SIM905
_VOWELS = ["a", "e", "i", "o", "u", "ai", "ea", "ou"]
_CODAS = ["", "n", "r", "l", "t", "x", "m", "ck"]
SPELLINGS = 5
"""Ways to write a word in a query: right, three misspellings, cut off."""


@dataclass(frozen=True)
class Vocabulary:
    """All words, and which of them speak of what. Each `*_words` holds positions in `words`; one row per thing."""

    words: pa.Array
    leaf_words: np.ndarray
    """[leaves, 2]; the first one also names the category."""
    leaf_synonyms: np.ndarray
    """[leaves, 2], in queries only."""
    style_words: np.ndarray
    """[styles, 4]"""
    style_synonyms: np.ndarray
    """[styles, 2], in queries only."""
    brand_words: np.ndarray
    """[brands]"""
    group_words: np.ndarray
    """[leaves], names of upper categories (as many as could be needed)."""
    noise_words: np.ndarray
    """[400], about nothing."""


def make_vocabulary(rng: np.random.Generator, leaves: int, styles: int, brands: int) -> Vocabulary:
    """Invents distinct words for everything a shop can speak of."""
    shapes = [(leaves, 2), (leaves, 2), (styles, 4), (styles, 2), (brands,), (leaves,), (400,)]
    ends = np.cumsum([int(np.prod(shape)) for shape in shapes])
    words = pa.array(_invent(rng, int(ends[-1])))
    parts = [part.reshape(shape) for part, shape in zip(np.split(np.arange(ends[-1]), ends[:-1]), shapes, strict=True)]
    return Vocabulary(words, *parts)


def _invent(rng: np.random.Generator, count: int) -> list[str]:
    draws = 3 * count + 100
    onset = rng.integers(len(_ONSETS), size=(draws, 3))
    vowel = rng.integers(len(_VOWELS), size=(draws, 3))
    coda = rng.integers(len(_CODAS), size=draws)
    long = rng.random(draws) < 0.4
    syllables = pa.array([o + v for o in _ONSETS for v in _VOWELS])
    parts = [syllables.take(pa.array(onset[:, i] * len(_VOWELS) + vowel[:, i])) for i in range(3)]
    parts[2] = pc.if_else(pa.array(long), parts[2], "")
    words = pc.binary_join_element_wise(*parts, pa.array(_CODAS).take(pa.array(coda)), "").unique().to_pylist()
    assert len(words) >= count, "not enough made-up words"
    return words[:count]


def spellings(rng: np.random.Generator, words: list[str]) -> list[str]:
    """Each word's `SPELLINGS`: itself, a letter left out, doubled, swapped with the next, the beginning."""
    place = rng.random(len(words))
    out = []
    for word, p in zip(words, place, strict=True):
        i = 1 + int(p * (len(word) - 2))
        left_out, doubled = word[:i] + word[i + 1 :], word[:i] + word[i] + word[i:]
        swapped = word[:i] + word[i + 1 : i + 2] + word[i] + word[i + 2 :]
        out += [word, left_out, doubled, swapped, word[: max(3, len(word) - 2)]]
    return out


def join_words(words: pa.Array, slots: list[np.ndarray]) -> pa.Array:
    """Texts from word positions, slot by slot; -1 leaves a slot out. Every text must have a word."""
    parts = [words.take(pa.array(slot, mask=slot < 0)) for slot in slots]
    return pc.binary_join_element_wise(*parts, " ", null_handling="skip")


def pick(rng: np.random.Generator, options: np.ndarray) -> np.ndarray:
    """One of each row's options: options [rows, n] -> [rows]."""
    return options[np.arange(len(options)), rng.integers(options.shape[1], size=len(options))]


def maybe(rng: np.random.Generator, share: float, slot: np.ndarray) -> np.ndarray:
    """Keeps a slot's word with probability `share`, else leaves it out."""
    return np.where(rng.random(len(slot)) < share, slot, -1)
