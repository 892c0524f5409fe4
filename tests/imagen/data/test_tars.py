import io
import tarfile
from pathlib import Path

import pytest

from imagen.data.tars import list_members, list_tars, open_tar, split_name, write_tar
from imagen.errors import ShardError


def made_by_tarfile(members: dict[str, bytes], form: int) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as archive:
        folder = tarfile.TarInfo("folder")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


MEMBERS = {
    "a.png": b"image",
    "a.txt": b"",
    "folder/b.jpg": b"x" * 512,
    "deep/" * 25 + "c.txt": b"y" * 513,  # over 100 characters: the ustar prefix field
}
LONG = {**MEMBERS, "d" * 160 + ".txt": b"long", "ü.txt": "ü".encode()}


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_the_walk_finds_what_tarfile_finds(form):
    content = made_by_tarfile(MEMBERS if form == tarfile.USTAR_FORMAT else LONG, form)
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        wanted = [(i.name, i.offset_data, i.size) for i in archive if i.isreg()]
    listing = list_members(content, "x.tar")
    assert [(m.name, m.offset, m.size) for m in listing.members] == wanted
    assert listing.plain == (form == tarfile.USTAR_FORMAT)


def test_a_tar_is_read_the_same_from_disk_and_from_memory(tmp_path: Path, samples):
    content = write_tar(samples(3))
    (tmp_path / "a.tar").write_bytes(content)
    mapped = open_tar(str(tmp_path / "a.tar"))
    assert list_members(mapped, "a.tar") == list_members(content, "a.tar")


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT])
def test_a_tar_cut_anywhere_is_an_error_that_names_the_byte(form):
    content = made_by_tarfile(
        MEMBERS | ({"ü.txt": b"z"} if form == tarfile.PAX_FORMAT else {}), form
    )
    end = max(m.offset + m.size for m in list_members(content, "x.tar").members)
    for cut in [0, 1, 511, 512, 513, 1024, 1029, 1536, 2048, end - 1, end]:
        with pytest.raises(ShardError, match=rf"tar `x.tar` is truncated at byte {cut}, "):
            list_members(content[:cut], "x.tar")


def test_a_truncated_tar_says_what_to_do(samples):
    with pytest.raises(ShardError, match="fetch the tar again, or take it out of the folder"):
        list_members(write_tar(samples(2))[:700], "x.tar")


def test_a_damaged_header_is_an_error_that_names_the_byte(samples):
    content = bytearray(write_tar(samples(2)))
    content[1024 + 3] ^= 1  # in the name of the second member, whose header is at 1024
    with pytest.raises(ShardError, match=r"tar `x\.tar`: no valid header at byte 1024"):
        list_members(bytes(content), "x.tar")


def test_a_file_that_is_no_tar_is_an_error():
    with pytest.raises(ShardError, match="no valid header at byte 0"):
        list_members(b"\xff\xd8" * 600, "photo.tar")


def test_writing_the_same_samples_twice_gives_the_same_bytes(samples):
    assert write_tar(samples(4)) == write_tar(samples(4))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.png", ("a", "png")),
        ("dir/a.PNG", ("dir/a", "png")),
        ("img.v1.jpg", ("img", "v1.jpg")),
        ("dir.d/a.txt", ("dir.d/a", "txt")),
        ("README", None),
        ("dir/._a.png", None),
    ],
)
def test_keys_end_at_the_first_dot_of_the_base_name(name, expected):
    assert split_name(name) == expected


def test_a_folder_without_tars_is_an_error(tmp_path: Path):
    with pytest.raises(ShardError, match=r"no \*\.tar files in"):
        list_tars(str(tmp_path))


def with_size(content: bytes, at: int, size: bytes) -> bytes:
    """Write another size into the header at byte `at`, and the checksum that fits it."""
    header = bytearray(content[at : at + 512])
    header[124:136] = size.ljust(12, b"\0")
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return content[:at] + bytes(header) + content[at + 512 :]


@pytest.mark.parametrize("size", [b"00000000009", b"-1000", b"1_0", b"0o17", b"+7", b"12 34"])
def test_a_size_that_is_not_octal_is_an_error_that_names_the_byte(samples, size):
    content = with_size(write_tar(samples(2)), 1024, size)
    with pytest.raises(ShardError, match=r"tar `x\.tar`: no valid header at byte 1024"):
        list_members(content, "x.tar")


@pytest.mark.parametrize("size", [b"-1000", b"00000000009"])
def test_a_size_that_is_not_octal_ends_a_tar_with_extended_headers_too(size):
    content = made_by_tarfile({"ü.txt": b"z", **MEMBERS}, tarfile.PAX_FORMAT)
    first = list_members(content, "x.tar").members[1]
    with pytest.raises(ShardError, match=r"tar `x\.tar`"):
        list_members(with_size(content, first.offset - 512, size), "x.tar")


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT])
def test_what_follows_the_end_of_the_archive_is_an_error_that_names_the_byte(form):
    one = made_by_tarfile(MEMBERS if form == tarfile.USTAR_FORMAT else LONG, form)
    last = list_members(one, "x.tar").members[-1]
    end = last.offset + -(-last.size // 512) * 512
    with pytest.raises(
        ShardError, match=rf"tar `x.tar` ends at byte {end}, but there is more from byte {len(one)}"
    ):
        list_members(one + one, "x.tar")
    assert list_members(one + bytes(5000), "x.tar") == list_members(one, "x.tar")


@pytest.mark.parametrize("name", ["manifest", "encoder"])
def test_a_tar_with_the_name_of_a_file_of_ours_is_refused(tmp_path, samples, name):
    for each in ("00000", name):
        (tmp_path / f"{each}.tar").write_bytes(write_tar(samples(1)))
    with pytest.raises(ShardError, match=rf"cannot be named {name}\.tar\n\nhint: rename it"):
        list_tars(str(tmp_path))
