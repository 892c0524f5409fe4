import json
import threading

import pytest

from eval import claim
from imagen import storage
from imagen.errors import StorageError

FOLDER = "memory://claims/000000000640-0123abcd"


@pytest.fixture
def folder(request, tmp_path):
    yield str(tmp_path) if request.param == "local" else FOLDER
    storage.delete(f"{FOLDER}/{claim.NAME}")


both = pytest.mark.parametrize("folder", ["local", "remote"], indirect=True)


@both
def test_a_claim_is_held_by_one_and_free_afterwards(folder, monkeypatch):
    monkeypatch.setattr(claim, "BEAT_S", 0.01)
    monkeypatch.setattr(claim, "LOOK_S", 0.02)
    assert claim.held_by(folder) is None
    with claim.claim(folder):
        assert "process" in claim.held_by(folder)
        another = claim.claim(folder, lease_s=30)
        with pytest.raises(claim.Taken, match=r"by process"), another:
            pass
    assert claim.held_by(folder) is None
    with claim.claim(folder, lease_s=30):
        pass


def test_a_claim_that_is_not_renewed_is_taken_over(monkeypatch):
    monkeypatch.setattr(claim, "LOOK_S", 0.01)
    path = f"{FOLDER}/{claim.NAME}"
    storage.put(path, json.dumps({"owner": "process 1 on a machine that is gone"}).encode())
    with claim.claim(FOLDER, lease_s=0.05):
        assert "that is gone" not in claim.held_by(FOLDER)
    assert not storage.exists(path)


def test_a_claim_that_was_taken_over_is_left_to_its_new_holder(monkeypatch):
    path = f"{FOLDER}/{claim.NAME}"
    with claim.claim(FOLDER):
        storage.put(path, json.dumps({"owner": "another", "beats": 0}).encode())
    assert claim.held_by(FOLDER) == "another"
    storage.delete(path)


def test_of_many_that_come_at_once_one_gets_the_claim(monkeypatch):
    monkeypatch.setattr(claim, "BEAT_S", 0.01)
    monkeypatch.setattr(claim, "LOOK_S", 0.02)
    release, outcomes = threading.Event(), []

    def come():
        try:
            with claim.claim(FOLDER, lease_s=30):
                outcomes.append("held")
                release.wait(30)
        except claim.Taken:
            outcomes.append("taken")

    threads = [threading.Thread(target=come) for _ in range(8)]
    for thread in threads:
        thread.start()
    while outcomes.count("taken") < 7:
        assert outcomes.count("held") <= 1
        release.wait(0.01)
    release.set()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["held"] + ["taken"] * 7


def test_an_owner_that_was_only_slow_learns_before_it_publishes_that_it_was_replaced():
    path = f"{FOLDER}/{claim.NAME}"
    with claim.claim(FOLDER) as check:
        check()
        storage.put(path, json.dumps({"owner": "another", "beats": 0}).encode())
        with pytest.raises(claim.Taken, match="evaluated by another"):
            check()
    storage.delete(path)


def test_a_store_that_is_away_for_a_moment_does_not_end_a_claim(monkeypatch):
    monkeypatch.setattr(claim, "BEAT_S", 0.01)
    answers = iter([StorageError("503"), StorageError("503")])
    get, beats = storage.get_if_there, threading.Event()

    def moody(path):
        for answer in answers:
            raise answer
        data = get(path)
        if data is not None and json.loads(data)["beats"] > 2:
            beats.set()
        return data

    with claim.claim(FOLDER):
        monkeypatch.setattr(storage, "get_if_there", moody)
        assert beats.wait(30), "it is not renewed any more"
        monkeypatch.undo()
