import io
import json
import struct
import zlib

import pytest
from PIL import Image

from imagen.data.images import decode
from imagen.data.samples import Bad, Sample, examine
from imagen.data.tars import Member, list_members, write_tar
from imagen.errors import ShardError


def examined(parts):
    content = write_tar(parts)
    return examine(content, list_members(content, "x.tar").members)


def picture(width, height):
    out = io.BytesIO()
    Image.new("L", (width, height)).save(out, "png")
    return out.getvalue()


def header(width, height):
    """A PNG that says it is large; nobody decodes it to find out."""
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [body, b"IDAT"]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
        for chunk in chunks
    )


@pytest.fixture
def good(samples):
    return samples(1)[0][1]


@pytest.mark.parametrize(
    ("change", "reason", "detail"),
    [
        ({"png": b"\x89PNG no more"}, "bad_image", "cannot identify image file"),
        ({"png": None}, "no_image", "only .txt"),
        ({"txt": None}, "no_caption", "only .png"),
        ({"txt": None, "json": b"{}"}, "no_caption", "the .json has no `caption`"),
        ({"txt": None, "json": b"{"}, "no_caption", "Expecting property name"),
        ({"txt": None, "json": b"[" * 100000}, "no_caption", "the .json is nested too deeply"),
        ({"txt": b"caf\xe9"}, "non_utf8", "can't decode byte 0xe9 in position 3"),
        ({"txt": None, "json": b'{"caption": "\\ud83d"}'}, "non_utf8", "surrogates not allowed"),
        ({"txt": b"x" * 65537}, "caption_size", "65,537 bytes"),
        ({"png": picture(1000, 3)}, "image_size", "1000x3 px"),
        ({"png": header(20000, 20000)}, "image_size", "more than 89,478,485 pixels"),
        ({"png": header(10000, 10000)}, "image_size", "more than 89,478,485 pixels"),
    ],
)
def test_a_sample_that_cannot_be_used_is_left_out_with_its_reason(good, change, reason, detail):
    parts = {k: v for k, v in {**good, **change}.items() if v is not None}
    (bad,) = examined([("key", parts)])
    assert isinstance(bad, Bad)
    assert (bad.key, bad.reason) == ("key", reason)
    assert detail in bad.detail


def test_a_key_that_would_widen_all_others_is_left_out(good):
    (bad,) = examined([("k" * 1025, good)])
    assert isinstance(bad, Bad)
    assert (bad.reason, bad.detail) == ("key_size", "1,025 bytes")


def test_a_program_that_calls_itself_an_image_is_not_run(good):
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\n"
    (bad,) = examined([("key", {**good, "png": eps})])
    assert isinstance(bad, Bad)
    assert bad.reason == "bad_image"
    with pytest.raises(ShardError, match="not a readable image"):
        decode(eps, (8,), 3)


def test_reasons_are_the_same_text_each_time(good):
    broken = [("key", {**good, "png": b"no image"})]
    assert examined(broken) == examined(broken)  # Pillow puts a memory address into its error


def test_a_good_sample_has_caption_and_size(good):
    (sample,) = examined([("key", {**good, "txt": b"  a cat\n"})])
    assert isinstance(sample, Sample)
    assert (sample.key, sample.text, sample.width, sample.height) == ("key", "a cat", 8, 8)


def test_an_empty_caption_is_kept(good):
    (sample,) = examined([("key", {**good, "txt": b" \n"})])
    assert isinstance(sample, Sample)
    assert sample.text == ""


def test_the_txt_is_preferred_to_the_caption_in_img2datasets_json(good):
    body = json.dumps({"caption": "from json", "url": "x"}).encode()
    both, only = examined(
        [("a", {**good, "json": body}), ("b", {"png": good["png"], "json": body})]
    )
    assert isinstance(both, Sample)
    assert isinstance(only, Sample)
    assert both.text == "caption s 0"
    assert only.text == "from json"


def test_the_second_sample_of_a_key_is_left_out_once(good):
    again = {**good, "txt": b"another caption"}
    found = examined([("a", good), ("b", good), ("a", again), ("a", again)])
    assert [f.key for f in found if isinstance(f, Sample)] == ["a", "b"]
    bad = [f for f in found if isinstance(f, Bad)]
    assert [(b.key, b.reason) for b in bad] == [("a", "duplicate_key")] * 2
    assert found[0].text == "caption s 0"  # type: ignore[union-attr]


def test_members_of_a_sample_need_not_be_neighbours(good):
    found = examined([("a", {"png": good["png"]}), ("b", good), ("a", {"txt": b"late"})])
    assert [f.key for f in found] == ["a", "b"]
    assert found[0].text == "late"  # type: ignore[union-attr]


def test_an_image_whose_header_breaks_the_reader_is_a_bad_image(good, monkeypatch):
    def plugin(file, **_):
        raise KeyError("tag 259")

    monkeypatch.setattr(Image, "open", plugin)
    (bad,) = examined([("key", good)])
    assert (bad.reason, bad.detail) == ("bad_image", f"'tag 259' ({len(good['png'])} bytes)")  # type: ignore[union-attr]


def test_an_image_without_caption_does_not_take_that_of_a_later_sample_of_its_key(good):
    found = examined([("a", {"png": b"first"}), ("a", good), ("b", good)])
    assert [(f.key, getattr(f, "reason", "good")) for f in found] == [
        ("a", "no_caption"),
        ("a", "duplicate_key"),
        ("b", "good"),
    ]


def test_members_that_give_no_key_are_counted(good):
    stray = [Member("README", 512, 3), Member("d/._a.png", 1536, 3)]
    found = examine(b"", stray)
    assert found == [
        Bad("README", "no_extension", "at byte 512"),
        Bad("d/._a.png", "hidden", "at byte 1536"),
    ]
