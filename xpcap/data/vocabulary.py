"""The vocabulary: tokenizing captions, encoding and decoding them."""

from __future__ import annotations

import collections
import json
import operator
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy

from xpcap.backend import Array, to_host
from xpcap.errors import ConfigurationError, DataError
from xpcap.files import SMALL, new_file, read_json

NULL, START, END, UNK = "<NULL>", "<START>", "<END>", "<UNK>"
SPECIAL = (NULL, START, END, UNK)
WORDS, CHARACTERS = "words", "characters"
_KINDS = f"{WORDS} or {CHARACTERS}"


def tokenize(caption: str) -> list[str]:
    """Split a caption into words: lower case, `-` as a space, only a-z and 0-9 kept.

    >>> tokenize("Two T-shirts, on a bed.")
    ['two', 't', 'shirts', 'on', 'a', 'bed']
    """
    return re.sub(r"[^a-z0-9\s]", "", caption.lower().replace("-", " ")).split()


class _Kept(dict[int, str]):
    """What `tokenize_any` makes of each character, by code point."""

    def __missing__(self, code: int) -> str:
        character = chr(code)
        kind = unicodedata.category(character)
        if kind == "No":  # such as ½, which NFKC would turn into digits of another number
            kept = f" {character} "
        elif kind[0] in "LMN" and "VARIATION SELECTOR" not in unicodedata.name(character, ""):
            kept = unicodedata.normalize("NFKC", character).lower()
        elif character in _INSIDE_NUMBERS:
            kept = character
        elif character in "'’" or (kind == "Cf" and character != _ZERO_WIDTH_SPACE):
            kept = ""
        else:
            kept = " "
        self[code] = kept
        return kept


_INSIDE_NUMBERS, _ZERO_WIDTH_SPACE = ".,:/", "\u200b"
_KEPT = _Kept()
_ABBREVIATED = re.compile(r"(?<!\w)([^\W\d_])\.(?=[^\W\d_]\b)")
_NOT_INSIDE = re.compile(r"(?<!\d)[.,:/]|[.,:/](?!\d)")


def tokenize_any(caption: str) -> list[str]:
    """Split a caption of any language with spaces between words, as `tokenize` does English.

    Letters, accents and digits of every script are kept (Unicode categories L, M and N, normal form
    NFKC; numerals such as ½ as words of their own). Other characters separate words, except `.`,
    `,`, `:` and `/` between digits; apostrophes, and dots between single letters, are dropped.

    >>> tokenize_any("Zwei T-Shirts, größer als das Café/Bistro: 3.50 €. Don't!")
    ['zwei', 't', 'shirts', 'größer', 'als', 'das', 'café', 'bistro', '3.50', 'dont']
    """
    joined = _ABBREVIATED.sub(r"\1", caption.lower())
    kept = unicodedata.normalize("NFC", joined.translate(_KEPT))
    words = _NOT_INSIDE.sub(" ", kept).split()
    return [word for word in words if any(map(str.isalnum, word))]  # no accents alone


def tokenize_characters(caption: str) -> list[str]:
    """Split a caption into the characters of its words, each with its accents; `<UNK>` is one.

    >>> tokenize_characters("一只狗，2岁。")
    ['一', '只', '狗', '2', '岁']
    """
    tokens: list[str] = []
    for part in re.split(f"({UNK})", caption):
        if part == UNK:
            tokens.append(UNK)
            continue
        for word in tokenize_any(part):
            for character in word:
                if tokens and unicodedata.category(character)[0] == "M":
                    tokens[-1] += character
                else:
                    tokens.append(character)
    return tokens


def tokenizer(tokens: str) -> Callable[[str], list[str]]:
    """Return what splits captions into `"words"` or `"characters"`."""
    if tokens not in (WORDS, CHARACTERS):
        raise ConfigurationError(f"tokens are {tokens!r}; expected {_KINDS}")
    return tokenize_characters if tokens == CHARACTERS else tokenize_any


def has_words(caption: str) -> bool:
    """Return whether a caption counts as one: `tokenize_any` finds a token in it."""
    return bool(re.search("[A-Za-z0-9]", caption) or tokenize_any(caption))  # the first is fast


_UNSPACED = ("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR")
_LONG = 6  # characters per word, more than words of these languages have on average


def looks_unspaced(captions: Iterable[Sequence[str]]) -> bool:
    """Return whether tokenized captions seem to lack spaces between words.

    They are mostly in a script that is written without, and are of one token or of long ones.
    """
    captions = [words for words in captions if words]
    counts = collections.Counter(c for words in captions for word in words for c in word)
    unspaced = sum(n for c, n in counts.items() if unicodedata.name(c, "").startswith(_UNSPACED))
    total, words = counts.total(), sum(map(len, captions))
    return 2 * unspaced > total and (total > _LONG * words or words < 2 * len(captions))


@dataclass(frozen=True)
class Vocabulary:
    """A list of distinct words, starting with `<NULL>`, `<START>`, `<END>` and `<UNK>`.

    `tokens` says of what captions consist: `"words"`, or `"characters"`, joined without spaces.
    """

    idx_to_word: Sequence[str]
    tokens: str = WORDS

    @cached_property
    def word_to_idx(self) -> dict[str, int]:
        """The index of each word."""
        return {word: index for index, word in enumerate(self.idx_to_word)}

    def __len__(self) -> int:
        return len(self.idx_to_word)

    @classmethod
    def build(
        cls, captions: Iterable[Sequence[str]], min_count: int = 1, tokens: str = WORDS
    ) -> Vocabulary:
        """Return the words that occur `min_count` times in tokenized captions, by frequency."""
        counts = collections.Counter(word for words in captions for word in words)
        kept = [word for word, count in counts.items() if count >= min_count]
        return cls([*SPECIAL, *sorted(kept, key=lambda word: (-counts[word], word))], tokens)

    def encode(self, words: Sequence[str], length: int) -> numpy.ndarray:
        """Return `<START> words <END>` padded with `<NULL>`, as int32 `(length,)`.

        Words that are not in the vocabulary become `<UNK>`; too many raise a `DataError`.
        """
        if len(words) + 2 > length:
            raise DataError(f"a caption of {len(words)} words does not fit in {length} places")
        places = self.word_to_idx
        row = numpy.full(length, places[NULL], numpy.int32)
        row[0] = places[START]
        row[1 : len(words) + 1] = [places.get(word, places[UNK]) for word in words]
        row[len(words) + 1] = places[END]
        return row

    def sentences(self, captions: numpy.ndarray) -> list[str]:
        """Turn word indices `(N, T)` into text, without `<NULL>`, `<START>` and `<END>`."""
        separator = "" if self.tokens == CHARACTERS else " "
        decoded = decode_captions(numpy.atleast_2d(captions), self.idx_to_word)
        return [separator.join(plain(sentence).split()) for sentence in decoded]

    @classmethod
    def read(cls, path: Path) -> Vocabulary:
        """Read a `coco2014_vocab.json`: an object with `idx_to_word` and `word_to_idx`.

        It may have `tokens`, too.
        """
        content = read_json(path, SMALL)
        if not isinstance(content, dict):
            content = {}
        vocabulary = cls.checked(content, f"{path}: 'idx_to_word'")
        if content.get("word_to_idx") != vocabulary.word_to_idx:
            raise DataError(f"{path}: 'word_to_idx' is not the inverse of 'idx_to_word'")
        return vocabulary

    @classmethod
    def checked(cls, stored: Any, where: str) -> Vocabulary:
        """Return the vocabulary of untrusted `stored`, called `where` in messages.

        It must be a list of distinct words without spaces, the special tokens first; or an object
        with this `idx_to_word` and `tokens`.
        """
        words, tokens = stored, WORDS
        if isinstance(stored, dict):
            words, tokens = stored.get("idx_to_word"), stored.get("tokens", WORDS)
        if tokens not in (WORDS, CHARACTERS):
            raise DataError(f"{where} is of the tokens {tokens!r:.40}; expected {_KINDS}")
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            raise DataError(f"{where}: expected a list of words")
        vocabulary = cls(words, tokens)
        if len(vocabulary.word_to_idx) != len(words):
            raise DataError(f"{where} holds a word twice; expected each word once")
        if not all(word.split() == [word] for word in words):
            raise DataError(f"{where} holds a word that is empty or contains a space")
        if tuple(words[: len(SPECIAL)]) != SPECIAL:
            raise DataError(f"{where} does not begin with {', '.join(SPECIAL)}")
        return vocabulary

    def stored(self) -> list[str] | dict[str, Any]:
        """Return what `checked` reads: a list if the tokens are words."""
        words = list(self.idx_to_word)
        return words if self.tokens == WORDS else {"tokens": self.tokens, "idx_to_word": words}

    def write(self, path: Path) -> None:
        """Write the file that `read` reads."""
        own = {} if self.tokens == WORDS else {"tokens": self.tokens}
        content = {"idx_to_word": list(self.idx_to_word), "word_to_idx": self.word_to_idx, **own}
        with new_file(path) as temporary:
            temporary.write_text(json.dumps(content), encoding="utf-8")


def as_index(value: Any, name: str) -> int:
    """Return a word's index, an integer or its digits as text (as JSON's keys are), as an int.

    Other values raise a `ConfigurationError`, which begins with `name`.
    """
    digits = isinstance(value, str) and value.isdecimal()
    try:
        index = operator.index(int(value) if digits else value)
    except TypeError:
        index = -1
    if index < 0:
        raise ConfigurationError(f"{name} is {value!r}; expected an integer from 0 on")
    return index


def decode_captions(
    captions: Array, idx_to_word: Sequence[str] | Mapping[Any, str]
) -> str | list[str]:
    """Turn word indices `(T,)`, or `(N, T)` for a list of captions, on any device, into text.

    It has the words up to and including `<END>`, without `<NULL>`. `idx_to_word` is a list, or a
    dict whose keys are as `as_index` takes them. A `DataError` is raised if captions do not hold
    integers, or an index is not in the vocabulary.
    """
    rows = to_host(captions)
    if rows.size and rows.dtype.kind not in "iu":
        raise DataError(f"captions are {rows.dtype}; expected word indices, integers")
    if isinstance(idx_to_word, Mapping):
        idx_to_word = {as_index(k, "a key of idx_to_word"): w for k, w in idx_to_word.items()}
    known = set(idx_to_word if isinstance(idx_to_word, Mapping) else range(len(idx_to_word)))
    if not set(numpy.unique(rows).tolist()) <= known:
        raise DataError(
            f"captions hold word indices {rows.min()} to {rows.max()};"
            f" the vocabulary has {min(known, default=0)} to {max(known, default=0)}"
        )
    sentences = [_sentence(row, idx_to_word) for row in numpy.atleast_2d(rows)]
    return sentences if rows.ndim > 1 else sentences[0]


def _sentence(row: Iterable[int], idx_to_word: Sequence[str] | Mapping[int, str]) -> str:
    words = [idx_to_word[index] for index in row]
    if END in words:
        words = words[: words.index(END) + 1]
    return " ".join(word for word in words if word != NULL)


def plain(sentence: str) -> str:
    """Return a decoded caption without `<START>` and `<END>`."""
    return " ".join(word for word in sentence.split() if word not in (START, END))
