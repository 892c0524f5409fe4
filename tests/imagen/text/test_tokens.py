import numpy as np

from imagen.text.tiny_t5 import HashTokenizer, row_of
from imagen.text.tokens import distinct, tokenize

EOS = HashTokenizer.eos


def test_every_caption_ends_with_the_end_of_sequence():
    rows = tokenize(HashTokenizer(), ["one", "one two"], 8)
    assert rows.ids == [[row_of("one"), EOS], [row_of("one"), row_of("two"), EOS]]
    assert (rows.truncated, rows.lost_tokens, rows.empty) == (0, 0, 0)


def test_a_caption_over_the_limit_is_cut_and_counted_and_keeps_its_end():
    rows = tokenize(HashTokenizer(), ["a b c d e f", "a b c"], 4)
    abc = [row_of(w) for w in "abc"]
    assert rows.ids == [[*abc, EOS], [*abc, EOS]]
    assert (rows.truncated, rows.lost_tokens) == (1, 3)


def test_an_empty_caption_is_the_end_of_sequence_alone_and_counted():
    rows = tokenize(HashTokenizer(), ["", " \n", "x"], 8)
    assert rows.ids[:2] == [[EOS], [EOS]]
    assert rows.empty == 2


def test_no_captions_are_no_rows():
    assert tokenize(HashTokenizer(), [], 8).ids == []


def test_equal_rows_share_a_slot():
    unique, slots = distinct([[5, 1], [6, 1], [5, 1]])
    assert [list(u) for u in unique] == [[5, 1], [6, 1]]
    np.testing.assert_array_equal(slots, [0, 1, 0])
    assert slots.dtype == np.int32


def test_words_are_split_from_punctuation_and_lower_cased():
    (ids,) = HashTokenizer().ids(["Seven, seven!"])
    assert ids == [row_of("seven"), row_of(","), row_of("seven"), row_of("!")]


def test_the_hash_of_a_word_does_not_change():
    assert [row_of(w) for w in ("seven", "7", "ü")] == [3970, 9376, 7949]
