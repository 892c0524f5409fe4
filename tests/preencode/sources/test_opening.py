import pytest

from imagen.config import read_tree
from imagen.errors import ConfigError
from preencode.sources.opening import overrides_of
from preencode.sources.rows import BadRowError, caption_text


@pytest.mark.parametrize("kind", ["digits", "folder", "hub", "shapes", "urls"])
def test_a_kind_says_its_name(kind):
    assert overrides_of(kind) == [f"source.name={kind}"]


@pytest.mark.parametrize(
    ("word", "kind"),
    [
        ("./photos", "folder"),
        ("gs://bucket/photos", "folder"),
        ("list.parquet", "urls"),
        ("./lists/LAION.Parquet", "urls"),
        ("https://host/list.csv", "urls"),
        ("a.tsv", "urls"),
        ("a.jsonl", "urls"),
    ],
)
def test_a_path_says_its_kind(word, kind):
    assert overrides_of(word) == [f"source.name={kind}", f"source.path={word}"]


def test_a_folder_needs_no_slash_where_it_is_there(tmp_path, monkeypatch):
    (tmp_path / "photos").mkdir()
    monkeypatch.chdir(tmp_path)
    assert overrides_of("photos") == ["source.name=folder", "source.path=photos"]


@pytest.mark.parametrize("word", ["./a: b", "./2024", "[x]/y", "./it's", "~/x"])
def test_a_path_that_yaml_would_misread_is_quoted(word, tmp_path):
    (tmp_path / "c.yaml").write_text("")
    tree = read_tree(str(tmp_path / "c.yaml"), overrides_of(word))
    assert tree["source"]["path"] == word


def test_an_unknown_word_lists_the_kinds():
    with pytest.raises(
        ConfigError,
        match=r"unknown source `laion`; known: digits, folder, hub, shapes, urls\n\nhint: or give",
    ):
        overrides_of("laion")


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (None, "no_caption"),
        (b" \n", "no_caption"),
        (b"caf\xe9", "non_utf8"),
        (b"x" * 65_537, "caption_size"),
    ],
    ids=lambda value: str(value)[:12],
)
def test_captions_that_cannot_be_used(raw, reason):
    with pytest.raises(BadRowError) as caught:
        caption_text(raw)
    assert caught.value.args[0] == reason


def test_a_caption_as_long_as_an_index_takes_is_taken():
    assert len(caption_text(b" " + b"x" * 65_536)) == 65_536


def test_captions_lose_white_space_and_byte_order_mark():
    assert caption_text(b"\xef\xbb\xbf a caf\xc3\xa9 \r\n") == "a café"
