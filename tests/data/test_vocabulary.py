import json
import unicodedata

import numpy
import pytest

from xpcap.data.vocabulary import (
    Vocabulary,
    decode_captions,
    has_words,
    looks_unspaced,
    plain,
    tokenize,
    tokenize_any,
    tokenize_characters,
)
from xpcap.errors import DataError


@pytest.mark.parametrize(
    ("caption", "words"),
    [
        ("A man, riding a wave.", ["a", "man", "riding", "a", "wave"]),
        (
            "Two T-shirts\tand\na mother-in-law",
            ["two", "t", "shirts", "and", "a", "mother", "in", "law"],
        ),
        ("Café №5 'quoted' (yes)", ["caf", "5", "quoted", "yes"]),
        (" . ", []),
    ],
)
def test_tokens_are_lower_case_letters_and_digits(caption, words):
    assert tokenize(caption) == words


@pytest.mark.parametrize(
    ("caption", "words"),
    [
        ("a bus/car on the left.A dog", "a bus car on the left a dog"),
        ("a mid–range, mid-range—or mid…range view", "a mid range mid range or mid range view"),
        ("½ of a 1½ m² bed, 10² or H₂O", "½ of a 1 ½ m ² bed 10 ² or h ₂ o"),
        ("3.50 at 10:30, 1,000 or 1/2.", "3.50 at 10:30 1,000 or 1/2"),
        ("the man's dog doesn’t", "the mans dog doesnt"),
        ("a T.V. at 6 a.m. in the U.S.A., vitamin.A", "a tv at 6 am in the usa vitamin a"),
        ("LEGO™ & snake_case (R&B)", "lego snake case r b"),
        ("un café à l'été", "un café à lété"),
        ("ＡＢＣ １２ ﬁsh", "abc 12 fish"),
        ("a\u200bb co\u00adop", "a b coop"),
        ("बड़े सेब", "बड़े सेब"),
        ("dog❤️ ❤️cat 1️⃣ 👨‍👩‍👧 🇩🇪 👍🏽", "dog cat 1"),
        ("❤️ \u0301 №5 ℃", "5"),
        ("...,.:/ ¿?", ""),
    ],
)
def test_own_words_are_split_at_punctuation(caption, words):
    found = tokenize_any(caption)
    assert found == [unicodedata.normalize("NFC", word) for word in words.split()]
    assert tokenize_any(" ".join(found)) == found
    assert has_words(caption) == bool(found)


@pytest.mark.parametrize(
    ("caption", "tokens"),
    [
        ("一只狗，在 2 楼。", "一 只 狗 在 2 楼"),
        ("犬がボールで遊ぶ", "犬 が ボ ー ル で 遊 ぶ"),
        ("สุนัข น่ารัก", "สุ นั ข น่ า รั ก"),
        ("A <UNK> é!", "a <UNK> é"),
        ("...", ""),
    ],
)
def test_characters_with_their_accents_are_tokens(caption, tokens):
    found = tokenize_characters(caption)
    assert found == tokens.split()
    assert tokenize_characters("".join(found)) == found


@pytest.mark.parametrize(
    ("captions", "unspaced"),
    [
        (["一只狗在草地上跑。", "两个人骑着自行车，旁边有一辆汽车"], True),
        (["狗", "白色的猫"], True),
        (["犬がボールで遊んでいる。"], True),
        (["สุนัขสีขาวกำลังวิ่งเล่นอยู่บนสนามหญ้า"], True),
        (["一只 狗 在 草地 上 跑", "两 个 人 骑着 自行车"], False),
        (["สุนัข สี ขาว กำลัง วิ่ง"], False),
        (["개가 잔디밭에서 뛰고 있다", "बड़े सेब मेज पर हैं", "كلب يجري على العشب"], False),
        (["Donaudampfschifffahrtsgesellschaft"], False),
        (["dog", "cat"], False),
        ([], False),
    ],
)
def test_captions_without_spaces_are_noticed(captions, unspaced):
    assert looks_unspaced(map(tokenize_any, captions)) == unspaced


def test_a_vocabulary_of_characters_joins_without_spaces(tmp_path):
    vocabulary = Vocabulary.build([tokenize_characters("一只狗")], tokens="characters")
    row = vocabulary.encode(tokenize_characters("狗只猫"), 6)
    assert vocabulary.sentences(row) == ["狗只<UNK>"]
    vocabulary.write(tmp_path / "vocab.json")
    assert Vocabulary.read(tmp_path / "vocab.json") == vocabulary
    assert Vocabulary.checked(vocabulary.stored(), "it") == vocabulary
    with pytest.raises(DataError, match="it is of the tokens 'bytes'; expected words or char"):
        Vocabulary.checked({**vocabulary.stored(), "tokens": "bytes"}, "it")


def test_words_are_kept_by_count_the_frequent_first():
    vocabulary = Vocabulary.build([["b", "a"], ["b", "c"], ["b", "a"]], min_count=2)
    assert vocabulary.idx_to_word == ["<NULL>", "<START>", "<END>", "<UNK>", "b", "a"]


def test_encoding_adds_special_tokens_and_pads():
    vocabulary = Vocabulary(["<NULL>", "<START>", "<END>", "<UNK>", "cat"])
    assert vocabulary.encode(["cat", "dog"], 6).tolist() == [1, 4, 3, 2, 0, 0]
    assert vocabulary.encode(["cat"], 3).tolist() == [1, 4, 2]
    with pytest.raises(DataError, match="2 words does not fit in 3"):
        vocabulary.encode(["cat", "cat"], 3)


def test_decoding_stops_at_the_end_and_leaves_padding_out(backend):
    words = ["<NULL>", "<START>", "<END>", "<UNK>", "cat", "sat"]
    rows = backend.to_device(numpy.array([[1, 4, 0, 5, 2, 4], [4, 4, 5, 5, 5, 5]], numpy.int32))
    assert decode_captions(rows, words) == ["<START> cat sat <END>", "cat cat sat sat sat sat"]
    assert decode_captions(rows[0], words) == "<START> cat sat <END>"
    assert plain("<START> cat sat <END>") == "cat sat"
    with pytest.raises(DataError, match="indices 4 to 5; the vocabulary has 0 to 4"):
        decode_captions(rows[1], words[:5])


def test_round_trip_through_its_file(tmp_path):
    vocabulary = Vocabulary.build([["cat", "dog"]])
    vocabulary.write(tmp_path / "vocab.json")
    assert Vocabulary.read(tmp_path / "vocab.json") == vocabulary


SPECIAL = ["<NULL>", "<START>", "<END>", "<UNK>"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "'idx_to_word': expected a list of words"),
        ('{"idx_to_word": [1]}', "'idx_to_word': expected a list of words"),
        (json.dumps({"idx_to_word": [*SPECIAL, "a", "a"]}), "holds a word twice"),
        (json.dumps({"idx_to_word": [*SPECIAL, "a"], "word_to_idx": {"a": 3}}), "not the inverse"),
        (json.dumps({"idx_to_word": ["a"], "word_to_idx": {"a": 0}}), "does not begin with <NULL>"),
    ],
)
def test_a_wrong_file_is_named(tmp_path, content, message):
    path = tmp_path / "vocab.json"
    path.write_text(content)
    with pytest.raises(DataError, match=message) as caught:
        Vocabulary.read(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_official_vocabulary_opens(coco_dir):
    vocabulary = Vocabulary.read(coco_dir / "coco2014_vocab.json")
    assert len(vocabulary) == 1004
    assert vocabulary.word_to_idx["<UNK>"] == 3
