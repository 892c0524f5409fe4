import csv
import json
import tracemalloc

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from imagen.errors import ConfigError, StorageError
from preencode.sources import tables
from preencode.sources.tables import read_table


def pairs(path, image=("url",), caption="") -> list:
    table = read_table(str(path), image, caption)
    return list(table.pairs(range(len(table))))


LISTS = {
    "a.csv": 'url,id,caption\nhttp://a,1,"one, or ""uno"""\nhttp://b,2,two\n',
    "a.tsv": 'caption\turl\none, or "uno"\thttp://a\ntwo\thttp://b\n',
    "a.jsonl": '{"url": "http://a", "text": "one, or \\"uno\\""}\n\n{"text":"two","url":"http://b"}',
}
WANTED = [(b"http://a", b'one, or "uno"'), (b"http://b", b"two")]


@pytest.mark.parametrize("name", LISTS)
def test_text_lists_are_read(tmp_path, name):
    (tmp_path / name).write_text(LISTS[name])
    assert pairs(tmp_path / name) == WANTED


def column(kind: pa.DataType) -> pa.Array:
    captions = pa.array([text.decode() for _, text in WANTED])
    return captions.dictionary_encode() if pa.types.is_dictionary(kind) else captions.cast(kind)


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.binary(), pa.dictionary(pa.int32(), pa.string())]
)
def test_parquet_lists_are_read_whatever_the_kind_of_text(tmp_path, kind):
    table = pa.table({"x": [1, 2], "URL": ["http://a", "http://b"], "TEXT": column(kind)})
    parquet.write_table(table, tmp_path / "a.parquet")
    assert pairs(tmp_path / "a.parquet") == WANTED  # URL and TEXT, as in LAION


def test_the_columns_can_be_named(tmp_path):
    (tmp_path / "a.csv").write_text("link,caption,alt\nhttp://a,no,yes\n")
    assert pairs(tmp_path / "a.csv", ["link"], "alt") == [(b"http://a", b"yes")]


def test_rows_are_taken_in_any_order(tmp_path):
    (tmp_path / "a.csv").write_text("url,caption\n0,a\n1,b\n2,c\n")
    table = read_table(str(tmp_path / "a.csv"), ["url"], "")
    assert list(table.pairs([2, 0])) == [(b"2", b"c"), (b"0", b"a")]


@pytest.mark.parametrize(
    ("name", "data", "wanted"),
    [
        ("a.csv", b"url,caption\nu,\xff\nv,b\n", [(b"u", b"\xff"), (b"v", b"b")]),
        ("a.csv", b"\xef\xbb\xbfurl,caption\nu,a\n", [(b"u", b"a")]),
        ("a.csv", b"url,caption\nu,a,b\nv,b\nw\n", [(None, None), (b"v", b"b"), (None, None)]),
        ("a.tsv", b'url\tcaption\nu\t"a\nv\tb"\n', [(b"u", b'"a'), (b"v", b'b"')]),
        (
            "a.jsonl",
            b'{"url":"u","caption":"a"}\n{oops\n[1]',
            [(b"u", b"a"), (None, None), (None, None)],
        ),
        ("a.jsonl", b'{"url":"u","caption":null}\n{"url":7}\n', [(b"u", None), (None, None)]),
        ("a.jsonl", b'{"url":"u","caption":"\\ud800"}', [(b"u", b"\xed\xa0\x80")]),
        ("a.jsonl", b'{"url":"u","caption":"\xff"}', [(b"u", b"\xff")]),
    ],
)
def test_a_bad_row_keeps_its_place(tmp_path, name, data, wanted):
    (tmp_path / name).write_bytes(data)
    assert pairs(tmp_path / name) == wanted


@pytest.mark.parametrize(
    ("name", "data", "told"),
    [
        (
            "a.csv",
            b"link,title\nu,a\n",
            r"has no column `url`; it has `link`, `title`\n\nhint: .*source.image_column=NAME",
        ),
        (
            "a.csv",
            b"url,title\nu,a\n",
            r"no column `caption` or `text`; it has `url`, `title`\n\nhint: .*caption_column=NAME",
        ),
        ("a.csv", b"", r"has no column `url`; it has none"),
        ("a.parquet", b"PAR1 is not enough", r"is no readable parquet file"),
        ("a.txt", b"", r"is no list: its name does not end in \.parquet, \.csv, \.tsv, \.jsonl"),
    ],
)
def test_a_list_that_cannot_be_used_is_an_error(tmp_path, name, data, told):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ConfigError, match=told):
        pairs(tmp_path / name)


def test_a_cell_may_be_long_but_not_endless(tmp_path, monkeypatch):
    (tmp_path / "a.csv").write_text(f"url,caption\nu,{'x' * 200_000}\n")
    assert pairs(tmp_path / "a.csv") == [(b"u", b"x" * 200_000)]
    monkeypatch.setattr(tables, "_CELL_BYTES", 1000)
    with pytest.raises(
        ConfigError, match=r"line 2 is no CSV: field larger(.|\n)*hint: look for a quote that is n"
    ):
        pairs(tmp_path / "a.csv")
    assert csv.field_size_limit() == 131_072  # other readers are as they were


NONE = (None, None)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (
            'url,caption\nhttp://a/1,1\nhttp://a/2,"2\nhttp://a/3,3\nhttp://a/4,"4"\nhttp://a/5,5\n',
            [(b"http://a/1", b"1"), NONE, NONE, NONE, (b"http://a/5", b"5")],
        ),
        (
            'url,caption\nhttp://a/1,1\nhttp://a/2,"2\nhttp://a/3,3\n',
            [(b"http://a/1", b"1"), NONE, NONE],
        ),
        ('caption,url\r\n"one,http://a/1\r\ntwo,http://a/2\r\n', [NONE, NONE]),
        ('file_name,caption\na.png,"one\nb.png,two\n', [NONE, NONE]),
        ('url,caption\nhttp://a/1,"a dog,\na cat"\n', [(b"http://a/1", b"a dog,\na cat")]),
        ('url,caption\nhttp://a/1,"see\nhttp://b"\n', [(b"http://a/1", b"see\nhttp://b")]),
    ],
)
def test_rows_that_an_open_quote_swallows_are_told_one_by_one(tmp_path, text, wanted):
    (tmp_path / "a.csv").write_bytes(text.encode())
    assert pairs(tmp_path / "a.csv", ["url", "file_name"]) == wanted


def test_columns_of_json_lines_that_nobody_asked_for_are_not_held(tmp_path):
    line = json.dumps({"url": "u", "text": "t", "more": list(range(300))}) + "\n"
    (tmp_path / "a.jsonl").write_text(line * 300)
    tracemalloc.start()
    table = read_table(str(tmp_path / "a.jsonl"), ["url"], "")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(table) == 300
    assert peak < 2 * len(line) * 300  # of the file alone, without its numbers


def test_long_lists_keep_their_order_over_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "_PIECE", 3)
    (tmp_path / "a.csv").write_text("url,caption\n" + "".join(f"{i},c{i}\n" for i in range(10)))
    wanted = [(str(i).encode(), f"c{i}".encode()) for i in range(10)]
    assert pairs(tmp_path / "a.csv") == wanted


def test_a_parquet_column_of_another_kind_is_an_error(tmp_path):
    table = pa.table({"url": ["u"], "caption": [["a", "b"]]})
    parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(ConfigError, match=r"column `caption` is list<.*>, not text"):
        pairs(tmp_path / "a.parquet")


def test_a_list_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(StorageError, match=r"cannot read .*nowhere\.csv`: it does not exist"):
        pairs(tmp_path / "nowhere.csv")
