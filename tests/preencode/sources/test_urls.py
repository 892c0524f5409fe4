import json
import socket
import threading
import time
from http.server import ThreadingHTTPServer

import pytest

from imagen import storage
from imagen.errors import ShardError, StorageError
from preencode import importing
from preencode.sources import opening, urls
from preencode.sources.rows import Sample, Slice, seeded_order
from preencode.sources.urls import UrlsSource


@pytest.fixture
def listed(config, tmp_path):
    """A config that imports a list of (URL, caption): `listed(rows, shard_samples=3)`."""

    def make(rows, out="run", **keys):
        path = tmp_path / "list.jsonl"
        path.write_text("".join(json.dumps({"url": u, "caption": c}) + "\n" for u, c in rows))
        usual = {"name": "urls", "path": str(path), "allow_private": True, "retries": 0}
        return config(
            f"source={json.dumps({**usual, 'timeout_s': 5, **keys})}", f"out={tmp_path}/{out}"
        )

    return make


@pytest.fixture
def album(site, picture):
    """Rows of a list of pictures that the site serves: `album(5)`."""

    def make(count):
        return [(site.serve(f"/{i}.png", picture(i)), f"picture {i}") for i in range(count)]

    return make


def files(folder: str) -> dict[str, bytes]:
    return {name: storage.get(storage.join(folder, name)) for name in storage.listdir(folder)}


def test_pictures_arrive_with_their_captions_and_urls(listed, album, picture, read_import):
    rows = album(9)
    c = listed(rows)
    assert importing.run(c).samples == 9
    found = read_import(c)
    for key, parts in found.samples.items():
        url, caption = rows[int(key)]
        assert parts["txt"].decode() == caption
        assert parts["png"] == picture(int(key))
        assert json.loads(parts["json"]) == {"url": url}
    assert list(found.samples) != sorted(found.samples)


def test_the_order_is_that_of_the_list_not_that_of_arrival(listed, album, site, read_import):
    rows = album(6)
    first = listed(rows, out="first")
    importing.run(first)
    order = list(read_import(first).samples)
    came: dict[str, threading.Event] = {key: threading.Event() for key in order}
    for key, following in zip(order, [*order[1:], None], strict=True):
        path = f"/{int(key)}.png"

        def after(request, answer=site.answers[path], key=key, following=following):
            assert following is None or came[following].wait(30)  # the next one comes first
            answer(request)
            came[key].set()

        site.answers[path] = after
    second = listed(rows, threads=6, out="second")
    importing.run(second)
    tars = [[storage.get(t.path) for t in importing.list_tars(c)] for c in (first, second)]
    assert tars[0] == tars[1]


def test_each_failure_is_counted_by_reason_and_listed_in_order(
    listed, album, site, picture, read_import
):
    rows = [
        *album(4),
        (f"{site.address}/gone.png", "gone"),
        (site.serve("/page", b"<html>moved</html>"), "a page"),
        (site.serve("/large", bytes(5000)), "large"),
        ("ftp://old/site.png", "old"),
        (site.serve("/silent.png", picture(5)), None),
        (site.serve("/empty.png", picture(5)), "  "),
        (None, "no address"),
        ("http://no-such-host.invalid/a.png", "nowhere"),
    ]
    c = listed(rows, largest_bytes=4000, shard_samples=5)
    done = importing.run(c)
    assert (done.samples, done.shards) == (4, 2)  # five rows of failures alone make no tar
    assert done.left_out == {
        "bad_row": 1,
        "bad_url": 1,
        "dns": 1,
        "http_404": 1,
        "no_caption": 2,
        "not_an_image": 1,
        "too_large": 1,
    }
    found = read_import(c)
    assert sum(found.manifest["left_out"].values()) == len(found.failures) == 8
    assert {f["row"]: f["reason"] for f in found.failures}[4] == "http_404"
    assert {f["row"]: f["where"] for f in found.failures}[5] == rows[5][0]
    assert "/silent.png" not in site.asked  # a fetch that is known to be in vain is not made


def test_private_addresses_are_refused_unless_they_are_asked_for(listed, album, site):
    assert importing.run(listed(album(2))).left_out == {}
    closed = listed(album(2), allow_private=False, out="closed")
    site.asked.clear()
    with pytest.raises(ShardError, match="no usable row among 2: 2 private_address"):
        importing.run(closed)
    assert site.asked == []


def test_a_rerun_asks_for_nothing_that_a_finished_shard_holds_or_left_out(listed, album, site):
    rows = [*album(6), (f"{site.address}/gone.png", "gone")]
    c = listed(rows, shard_samples=3)
    importing.run(c)
    whole = files(c.tars)
    storage.delete(importing.manifest_path(c))
    storage.delete(storage.join(c.tars, "00001.json"))  # as after a kill before it
    site.asked.clear()
    assert importing.run(c).fresh
    assert len(site.asked) == 3
    assert files(c.tars) == whole
    site.asked.clear()
    assert not importing.run(c).fresh
    assert site.asked == []


def test_a_shard_of_more_bytes_than_allowed_becomes_several_tars(listed, album, read_import):
    c = listed(album(9), shard_bytes=16000)
    importing.run(c)
    names = [storage.name(tar.path) for tar in importing.list_tars(c)]
    assert names[:2] == ["00000.tar", "00000_001.tar"]
    assert len(names) > 3
    assert all(storage.size(tar.path) <= 20480 for tar in importing.list_tars(c))
    assert len(read_import(c).samples) == 9


def test_a_list_that_changed_is_imported_anew(listed, album, read_import):
    rows = album(4)
    importing.run(listed(rows))
    c = listed([*rows[:3], (rows[3][0], "another caption")])
    assert importing.run(c).fresh
    assert "another caption" in read_import(c).captions


def test_when_nothing_at_all_can_be_reached_the_shard_is_not_taken_for_finished(listed):
    c = listed([(f"http://127.0.0.1:1/{i}", "a") for i in range(20)])
    with pytest.raises(
        StorageError, match=r"none of 20 URLs in a row could be reached\n\nhint: ch"
    ):
        importing.run(c)
    assert storage.listdir(c.tars) == ["begun.json"]


DEAD = "http://127.0.0.1:1"


def test_a_short_list_of_which_nothing_can_be_reached_is_tried_again(listed, album, site):
    rows = album(3)
    port = int(site.address.rpartition(":")[2])
    c = listed([*rows, (f"{site.address}/silent.png", None)])  # a row that asks for nothing
    site.server.socket.close()  # nobody listens
    with pytest.raises(StorageError, match="none of 3 URLs in a row could be reached"):
        importing.run(c)
    assert importing.done(c) is None
    again = ThreadingHTTPServer(("127.0.0.1", port), site.server.RequestHandlerClass)
    thread = threading.Thread(target=again.serve_forever, args=(0.01,))
    thread.start()
    assert importing.run(c).samples == 3
    again.shutdown()
    thread.join()
    again.server_close()


def test_an_outage_in_mid_slice_loses_nothing(listed, album, site):
    rows = album(60)
    whole, c = listed(rows, threads=2, out="whole"), listed(rows, threads=2)
    importing.run(whole)
    site.asked.clear()
    answers = dict(site.answers)
    for path, answer in answers.items():

        def dying(request, answer=answer):
            if len(site.asked) > 7:
                request.connection.shutdown(socket.SHUT_RDWR)
            else:
                answer(request)

        site.answers[path] = dying
    with pytest.raises(
        StorageError, match=r"none of 20 URLs in a row could be reached, nor any of 4 others"
    ):
        importing.run(c)
    assert len(site.asked) < 60  # it ends soon
    assert "00000.json" not in storage.listdir(c.tars)
    site.answers.update(answers)
    assert importing.run(c).left_out == {}
    assert files(c.tars) == files(whole.tars)


def test_dead_urls_among_others_are_left_out_however_many_come_in_a_row(listed, album, site):
    rows = [(f"{DEAD}/{i}", "a") for i in range(30)]
    order = seeded_order(30, 0)
    rows[order[0]], rows[order[25]] = album(2)
    c = listed(rows, threads=1, shard_samples=3)
    assert importing.run(c).left_out == {"connection": 28}
    other = listed(rows, threads=1, out="other")
    assert importing.run(other).left_out == {"connection": 28}
    assert importing.run(other).samples == 2


def test_a_dead_rest_of_a_list_is_left_out_also_by_a_later_run(listed, album):
    rows = [*album(4), *((f"{DEAD}/{i}", "a") for i in range(2))]
    c = listed(rows, shard_samples=1)
    importing.run(c)
    whole = files(c.tars)
    for name, body in whole.items():
        if name[:5].isdigit() and name.endswith(".json") and not json.loads(body)["samples"]:
            storage.delete(storage.join(c.tars, name))
    storage.delete(importing.manifest_path(c))
    assert importing.run(c).samples == 4
    assert files(c.tars) == whole


def test_the_same_list_by_another_name_is_not_fetched_again(listed, album, site, config, tmp_path):
    importing.run(listed(album(3)))
    site.asked.clear()
    copy = tmp_path / "copy.jsonl"
    copy.write_bytes((tmp_path / "list.jsonl").read_bytes())
    section = {"name": "urls", "path": str(copy), "allow_private": True}
    c = config(f"source={json.dumps(section)}", f"out={tmp_path}/run")
    assert not importing.run(c).fresh
    assert site.asked == []
    assert len(importing.list_tars(c)) == 1


def test_pictures_that_wait_for_their_turn_are_bounded(listed, album, site):
    rows = album(40)
    source = opening.open_source(listed(rows, threads=2).source, 0)
    assert isinstance(source, UrlsSource)
    reading = source.read(Slice(0, 40))
    assert isinstance(next(reading), Sample)
    reading.close()
    assert len(site.asked) <= urls._AHEAD * 2 + 1


def test_a_list_with_fewer_threads_gives_the_same_bytes(listed, album):
    rows = album(8)
    one, many = listed(rows, threads=1, out="one"), listed(rows, threads=8, out="many")
    importing.run(one)
    importing.run(many)
    assert files(one.tars) == files(many.tars)  # the manifests, too


def test_a_reader_that_stops_stops_the_fetches_that_are_under_way(listed, album, site):
    ended, asked = threading.Event(), threading.Event()

    def hang(_):
        asked.set()
        ended.wait(60)

    rows = [*album(1), (site.script("/hang", hang), "slow")]
    in_this_order = 4  # the seed that deals two rows so
    source = opening.open_source(listed(rows, timeout_s=50).source, in_this_order)
    reading = source.read(Slice(0, 2))
    assert next(reading).key == "000000000"
    assert asked.wait(30)
    start = time.monotonic()
    reading.close()  # waits for the threads
    assert time.monotonic() - start < 25
    ended.set()
