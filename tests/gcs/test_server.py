"""Our server does what GCS does, to gcsfs and to Google's own client."""

import threading
import uuid
import warnings

import google.api_core.exceptions as google_errors
import pytest
from google.auth.credentials import AnonymousCredentials
from google.cloud import storage as google_storage

pytestmark = [
    pytest.mark.gcs,
    pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning"),  # gcsfs does
]

MIB = 2**20
ODD = ["a b", "x+y", "50%", "ü", "a/b/c", "q?x=1", "#1", "'quoted'", "tab\there"]


@pytest.fixture
def fs(gcs):
    import gcsfs.core

    made = gcsfs.core.GCSFileSystem(
        project="p", token="anon", use_listings_cache=False, skip_instance_cache=True
    )
    made.bucket = gcs.name
    return made


@pytest.fixture
def client(gcs):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = google_storage.Client("p", credentials=AnonymousCredentials())
    yield made
    made.close()


@pytest.fixture
def blobs(client, gcs):
    return client.bucket(gcs.name)


def noise(size: int) -> bytes:
    piece = b"".join(uuid.uuid4().bytes for _ in range(4096)) + b"\r\n\n--==0==\r\n"
    return (piece * (size // len(piece) + 1))[:size]


# gcsfs


@pytest.mark.parametrize("size", [0, 1, 1000, 3 * MIB + 5])
def test_gcsfs_gets_back_what_it_uploads(fs, size: int):
    data = noise(size)
    fs.pipe_file(f"{fs.bucket}/x", data)
    assert fs.cat_file(f"{fs.bucket}/x") == data
    assert fs.info(f"{fs.bucket}/x")["size"] == size


@pytest.mark.parametrize("end", [b"\r", b"\n", b"\r\n", b"\n--==0==--"])
def test_gcsfs_gets_back_line_ends_at_the_end(fs, end: bytes):
    fs.pipe_file(f"{fs.bucket}/x", b"data" + end)
    assert fs.cat_file(f"{fs.bucket}/x") == b"data" + end


@pytest.mark.parametrize("name", ODD)
def test_gcsfs_may_use_odd_names(fs, name: str):
    if "#" in name or "?" in name:
        pytest.skip("gcsfs reads these as generations and queries")
    fs.pipe_file(f"{fs.bucket}/{name}", b"data")
    assert fs.cat_file(f"{fs.bucket}/{name}") == b"data"
    assert fs.find(fs.bucket) == [f"{fs.bucket}/{name}"]
    fs.rm_file(f"{fs.bucket}/{name}")
    assert not fs.exists(f"{fs.bucket}/{name}")


def test_gcsfs_uploads_large_files_in_chunks(fs, tmp_path):
    data = noise(6 * MIB + 7)
    (tmp_path / "x").write_bytes(data)
    fs.put_file(str(tmp_path / "x"), f"{fs.bucket}/x", chunksize=MIB)
    fs.pipe_file(f"{fs.bucket}/y", data, chunksize=2 * MIB)
    fs.get_file(f"{fs.bucket}/y", str(tmp_path / "y"))
    assert fs.cat_file(f"{fs.bucket}/x") == (tmp_path / "y").read_bytes() == data


def test_gcsfs_reads_ranges(fs):
    path = f"{fs.bucket}/x"
    fs.pipe_file(path, b"0123456789")
    assert fs.cat_file(path, start=2, end=5) == b"234"
    assert fs.cat_file(path, start=-3) == b"789"
    assert fs.cat_file(path, start=8, end=50) == b"89"
    with pytest.raises(Exception, match=r"416|range"):
        fs.cat_file(path, start=10, end=12)


def test_gcsfs_lists_names_and_folders_page_by_page(fs, monkeypatch):
    names = [f"{number:04d}" for number in range(25)]
    for name in names:
        fs.pipe_file(f"{fs.bucket}/run/{name}/x", b"1")
    fs.pipe_file(f"{fs.bucket}/run/file", b"12345")
    whole = [f"{fs.bucket}/run/{name}" for name in [*names, "file"]]
    assert fs.ls(f"{fs.bucket}/run", detail=False) == whole
    paged = fs.ls(f"{fs.bucket}/run", detail=True, items_per_call=4)
    assert sorted(entry["name"] for entry in paged) == whole
    assert len(fs.find(fs.bucket)) == 26
    assert fs.glob(f"{fs.bucket}/run/*1/x") == [
        f"{fs.bucket}/run/{n}/x" for n in names if n[-1] == "1"
    ]


def test_gcsfs_creates_only_what_is_not_there(fs):
    path = f"{fs.bucket}/x"
    fs.pipe_file(path, b"first", mode="create")
    with pytest.raises(FileExistsError):
        fs.pipe_file(path, b"second", mode="create")
    assert fs.cat_file(path) == b"first"


def test_of_sixteen_racing_creators_one_wins(fs):
    gate, won = threading.Barrier(16), []

    def create(number: int) -> None:
        gate.wait()
        try:
            fs.pipe_file(f"{fs.bucket}/x", b"%d" % number, mode="create")
        except FileExistsError:
            return
        won.append(number)

    threads = [threading.Thread(target=create, args=(n,)) for n in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert fs.cat_file(f"{fs.bucket}/x") == b"%d" % won[0]


def test_gcsfs_copies_moves_and_deletes(fs):
    old, new, third = (f"{fs.bucket}/{name}" for name in ("old", "a/new", "b/third"))
    fs.pipe_file(old, b"data")
    fs.cp_file(old, new)
    fs.mv_file(new, third)
    assert sorted(fs.find(fs.bucket)) == [third, old]
    assert fs.cat_file(third) == b"data"
    fs.rm(fs.bucket + "/b", recursive=True)
    assert fs.find(fs.bucket) == [old]
    with pytest.raises(FileNotFoundError):
        fs.rm_file(third)


def test_gcsfs_deletes_in_batches(fs, gcs):
    for number in range(5):
        fs.pipe_file(f"{fs.bucket}/{number}", b"")
    import fsspec.asyn

    paths = [f"{fs.bucket}/{number}" for number in (0, 1, 2)] + [f"{fs.bucket}/none"]
    done = fsspec.asyn.sync(fs.loop, fs._rm_files, paths)
    assert done[:3] == paths[:3]
    assert isinstance(done[3], OSError)
    assert sorted(gcs.server.objects(gcs.url + "/")) == ["3", "4"]


def test_a_generation_that_was_read_is_replaced_once(fs):
    path = f"{fs.bucket}/x"
    fs.pipe_file(path, b"one")
    generation = fs.info(path)["generation"]
    where = f"{fs._location}/upload/storage/v1/b/{fs.bucket}/o"
    options = {"uploadType": "media", "name": "x", "ifGenerationMatch": generation}
    fs.call("POST", where, data=b"two", **options)
    with pytest.raises(FileExistsError):
        fs.call("POST", where, data=b"three", **options)
    assert fs.cat_file(path) == b"two"
    assert fs.info(path)["generation"] != generation


def test_checksums_are_those_of_the_data(fs):
    fs.pipe_file(f"{fs.bucket}/x", bytes(32))
    info = fs.info(f"{fs.bucket}/x")
    assert info["crc32c"] == "ipE2qg=="  # RFC 3720, B.4: 8a9136aa
    assert info["md5Hash"] == "cLyPS3KoaSFGi/joRB3OUQ=="  # as md5sum has it
    headers, _ = fs.call("GET", fs.url(f"{fs.bucket}/x"))
    assert headers["X-Goog-Hash"] == "crc32c=ipE2qg==,md5=cLyPS3KoaSFGi/joRB3OUQ=="


# Google's own client


@pytest.mark.parametrize("name", ODD)
def test_googles_client_gets_back_what_it_uploads(blobs, name: str):
    data = noise(100_000)
    blobs.blob(name).upload_from_string(data)
    found = blobs.get_blob(name)
    assert found.size == len(data)
    assert found.download_as_bytes() == data
    assert found.download_as_bytes(start=5, end=9) == data[5:10]
    found.delete()
    assert blobs.get_blob(name) is None


def test_googles_client_uploads_in_chunks_of_a_mebibyte(blobs, tmp_path):
    data = noise(9 * MIB + 3)
    (tmp_path / "x").write_bytes(data)
    blob = blobs.blob("x", chunk_size=MIB)
    blob.upload_from_filename(str(tmp_path / "x"))
    blob.download_to_filename(str(tmp_path / "y"))
    assert (tmp_path / "y").read_bytes() == data
    with blobs.blob("z", chunk_size=MIB).open("wb") as file:  # size not known before
        file.write(data)
    assert blobs.blob("z").download_as_bytes() == data


def test_googles_client_keeps_preconditions(blobs):
    blob = blobs.blob("x")
    blob.upload_from_string(b"one", if_generation_match=0)
    with pytest.raises(google_errors.PreconditionFailed):
        blobs.blob("x").upload_from_string(b"two", if_generation_match=0)
    first = blob.generation
    blobs.blob("x").upload_from_string(b"two", if_generation_match=first)
    with pytest.raises(google_errors.PreconditionFailed):
        blobs.blob("x").upload_from_string(b"three", if_generation_match=first)
    assert blobs.blob("x").download_as_bytes() == b"two"
    with pytest.raises(google_errors.PreconditionFailed):
        blobs.blob("x").delete(if_generation_match=first)


def test_googles_client_composes_copies_and_changes_metadata(blobs):
    for name in ("a", "b"):
        blobs.blob(name).upload_from_string(name * 3)
    both = blobs.blob("both")
    both.compose([blobs.blob("a"), blobs.blob("b")])
    both = blobs.get_blob("both")
    assert both.download_as_bytes() == b"aaabbb"
    assert both.component_count == 2
    copied = blobs.copy_blob(both, blobs, "copy")
    assert copied.download_as_bytes() == b"aaabbb"
    copied.metadata = {"key": "value"}
    copied.patch()
    again = blobs.get_blob("copy")
    assert (again.metadata, again.metageneration) == ({"key": "value"}, 2)
    token, rewritten, total = blobs.blob("third").rewrite(copied)
    assert (token, rewritten, total) == (None, 6, 6)


def test_googles_client_lists_page_by_page(client, blobs):
    names = [f"{n:03d}" for n in range(23)]
    for name in [*(f"run/{name}/x" for name in names), "run/file"]:
        blobs.blob(name).upload_from_string(b"")
    pages = client.list_blobs(blobs, prefix="run/", delimiter="/", page_size=5)
    sizes = [len(list(page)) + len(page.prefixes) for page in pages.pages]
    assert sizes == [5, 5, 5, 5, 4]
    assert pages.prefixes == {f"run/{name}/" for name in names}
    assert [b.name for b in client.list_blobs(blobs, max_results=3)] == [
        f"run/{name}/x" for name in names[:3]
    ]


def test_googles_client_sends_batches(client, blobs):
    for name in "abc":
        blobs.blob(name).upload_from_string(name)
    with client.batch():
        blobs.blob("a").delete()
        blobs.blob("b").delete()
    assert [b.name for b in client.list_blobs(blobs)] == ["c"]


def test_googles_client_knows_buckets(client, blobs):
    made = client.create_bucket(f"made-{uuid.uuid4().hex[:8]}")
    assert client.lookup_bucket(made.name) is not None
    assert client.lookup_bucket("none") is None
    assert {made.name, blobs.name} <= {b.name for b in client.list_buckets()}
    made.delete()
    assert client.lookup_bucket(made.name) is None


# resumable uploads, as the protocol has them


def test_a_resumable_upload_tells_how_far_it_is_and_goes_on_from_there(fs):
    where = f"{fs._location}/upload/storage/v1/b/{fs.bucket}/o"
    headers, _ = fs.call("POST", where, uploadType="resumable", json={"name": "x"})
    location, data = headers["Location"], noise(MIB + 5)

    def send(part: bytes, told: str):
        return fs.call("PUT", location, data=part, headers={"Content-Range": told})[0]

    assert "Range" not in send(b"", "bytes */*")
    assert send(data[: MIB // 2], f"bytes 0-{MIB // 2 - 1}/*")["Range"] == f"bytes=0-{MIB // 2 - 1}"
    assert send(b"", "bytes */*")["Range"] == f"bytes=0-{MIB // 2 - 1}"
    with pytest.raises(Exception, match="no multiple"):
        send(data[MIB // 2 : MIB // 2 + 9], f"bytes {MIB // 2}-{MIB // 2 + 8}/*")
    for _ in range(2):  # what was sent twice counts once
        send(data, f"bytes 0-{MIB + 4}/{MIB + 5}")
    assert fs.cat_file(f"{fs.bucket}/x") == data


def test_a_cancelled_upload_leaves_nothing(fs):
    where = f"{fs._location}/upload/storage/v1/b/{fs.bucket}/o"
    headers, _ = fs.call("POST", where, uploadType="resumable", json={"name": "x"})
    fs.call("DELETE", headers["Location"])
    assert not fs.exists(f"{fs.bucket}/x")


def test_a_wrong_checksum_is_refused(fs):
    where = f"{fs._location}/upload/storage/v1/b/{fs.bucket}/o"
    wrong = {"X-Goog-Hash": "crc32c=AAAAAA=="}
    with pytest.raises(Exception, match="checksum"):
        fs.call("POST", where, uploadType="media", name="x", data=b"data", headers=wrong)
    assert not fs.exists(f"{fs.bucket}/x")


def test_faults_are_planned_and_counted(gcs):
    import urllib.error
    import urllib.request

    gcs.server.faults({"kind": "status", "status": 429, "path": "/o/x", "nth": [2], "times": 1})
    address = f"{gcs.server.endpoint}/storage/v1/b/{gcs.name}/o/x"
    codes = []
    for _ in range(3):
        with pytest.raises(urllib.error.HTTPError) as err:
            urllib.request.urlopen(address, timeout=10)
        codes.append(err.value.code)
        err.value.close()
    assert codes == [404, 429, 404]
    counts = gcs.server.counts()
    assert (counts["requests"], counts["kinds"]) == (3, {"status": 1})
    assert counts["rules"] == [{"matched": 3, "injected": 1}]
