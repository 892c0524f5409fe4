import io
import json

import numpy as np
import pytest
from PIL import Image

from imagen import storage
from imagen.data import index, tars
from imagen.errors import ShardError


def indexed(parts, heldout=0.2):
    content = tars.write_tar(parts)
    return content, index.index_tar(content, "x.tar", heldout)


def test_rows_point_at_the_bytes_of_image_and_caption(samples):
    parts = samples(5)
    content, found = indexed(parts)
    for row, key, (name, files) in zip(found.rows, found.keys, parts, strict=True):
        start = row["image_offset"]
        assert content[start : start + row["image_bytes"]] == files["png"]
        assert key.decode() == name
    assert index.captions(content, found.rows) == [f["txt"].decode() for _, f in parts]


def test_the_held_out_share_is_chosen_by_key_alone():
    held = {f"k{i}" for i in range(20000) if index.is_heldout(f"k{i}", 0.1)}
    assert abs(len(held) / 20000 - 0.1) < 0.01
    # a larger share only adds samples: nothing held out once is trained on later
    assert held <= {f"k{i}" for i in range(20000) if index.is_heldout(f"k{i}", 0.2)}
    assert not any(index.is_heldout(key, 0.0) for key in held)


def test_the_held_out_hash_does_not_change():
    flags = [index.is_heldout(f"digit{i:04d}", 0.5) for i in range(16)]
    assert flags == [bool(int(c)) for c in "1010000011101101"]


def test_the_digest_is_of_keys_and_captions_not_of_tar_bytes(samples):
    parts = samples(4)
    _, once = indexed(parts)
    _, repacked = indexed([(k, {"txt": f["txt"], "png": f["png"] + b"\0"}) for k, f in parts])
    _, other = indexed([(k, {**f, "txt": f["txt"] + b"!"}) for k, f in parts])
    _, swapped = indexed(parts[::-1])
    assert once.digest == repacked.digest
    assert len({once.digest, other.digest, swapped.digest}) == 3


def test_the_checksum_of_the_images_follows_every_byte_of_them_and_no_caption(samples):
    parts = samples(4)
    _, once = indexed(parts)
    _, captions = indexed([(k, {**f, "txt": b"other"}) for k, f in parts])
    changed = [*parts[:3], (parts[3][0], {**parts[3][1], "png": parts[3][1]["png"] + b"\0"})]
    _, images = indexed(changed)
    assert once.images_crc32c == storage.crc32c(b"".join(f["png"] for _, f in parts))
    assert once.images_crc32c == captions.images_crc32c != images.images_crc32c
    assert once.digest == images.digest  # embeddings are kept


def test_images_are_counted_by_their_shorter_side(samples):
    parts = samples(3)
    for i, (width, height) in enumerate([(9, 16), (16, 9), (1500, 1100)]):
        out = io.BytesIO()
        Image.new("L", (width, height)).save(out, "png")
        parts[i][1]["png"] = out.getvalue()
    _, found = indexed([*parts, *samples(1, "t")])
    assert found.sides == {"8": 1, "9": 2, str(index.LARGEST_PX): 1}


def test_a_digest_cannot_be_fooled_by_moving_letters_between_key_and_caption():
    assert index.digest_rows([b"ab"], ["c"]) != index.digest_rows([b"a"], ["bc"])


def test_bad_samples_are_counted_by_reason_and_listed(samples, tmp_path):
    good = samples(3)
    broken = [("x", {**good[0][1], "png": b"?"}), ("y", {"txt": b"no image"})]
    _, found = indexed([good[0], *broken, *good[1:], ("z", {"txt": b"neither"})])
    body = index.publish(str(tmp_path), "00000", found, {"tar": "x.tar"})
    assert body["bad"] == {"bad_image": 1, "no_image": 2}
    assert body["rows"] == 3
    lines = (tmp_path / "00000.quarantine.jsonl").read_text().splitlines()
    assert [json.loads(line)["key"] for line in lines] == ["x", "y", "z"]


def test_a_loaded_index_is_what_was_published(samples, tmp_path):
    _, found = indexed(samples(6))
    index.publish(str(tmp_path), "00000", found, {"tar": "x.tar"})
    rows, keys, body = index.load(str(tmp_path), "00000")
    np.testing.assert_array_equal(rows, found.rows)
    np.testing.assert_array_equal(keys, found.keys)
    assert body["train"] + body["heldout"] == body["rows"] == 6


def test_a_flipped_byte_in_the_index_is_an_error(samples, tmp_path):
    _, found = indexed(samples(6))
    index.publish(str(tmp_path), "00000", found, {"tar": "x.tar"})
    path = tmp_path / "00000.index.npy"
    data = bytearray(path.read_bytes())
    data[200] ^= 1
    storage.put(str(path), bytes(data))
    with pytest.raises(ShardError, match=r"00000\.index\.npy` has \d+ bytes with checksum"):
        index.load(str(tmp_path), "00000")


def test_a_tar_without_usable_samples_is_an_error():
    with pytest.raises(
        ShardError, match=r"tar `x.tar` holds no usable sample: 1 bad_image, 2 no_im"
    ):
        indexed([(k, {"txt": b"caption"}) for k in "ab"] + [("c", {"txt": b"", "png": b"?"})])


def test_an_index_of_another_shard_is_not_found(tmp_path):
    with pytest.raises(ShardError, match="missing or unfinished"):
        index.load(str(tmp_path), "00007")
