import threading

import numpy as np
import pytest
import torch

from imagen.data.randomness import Purpose, normals, strata, threefry, uniforms


def words(counter: tuple[int, int], key: tuple[int, int]) -> tuple[int, int]:
    as_array = lambda pair: tuple(np.array([v], np.uint32) for v in pair)  # noqa: E731
    first, second = threefry(as_array(key), as_array(counter))
    return int(first[0]), int(second[0])


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
        ((0xFFFFFFFF, 0xFFFFFFFF), (0xFFFFFFFF, 0xFFFFFFFF), (0x1CB996FC, 0xBB002BE7)),
        ((0x243F6A88, 0x85A308D3), (0x13198A2E, 0x03707344), (0xC4923A9C, 0x483DF7A0)),
    ],
)
def test_threefry_gives_the_known_answers_of_random123(counter, key, expected):
    assert words(counter, key) == expected


def test_normals_are_those_of_the_formula():
    first, second = words((1, 5), (9, Purpose.NOISE << 16))
    radius = np.sqrt(-2 * np.log((first + 0.5) / 2**32))
    angle = 2 * np.pi * second / 2**32
    expected = np.float32([radius * np.cos(angle), radius * np.sin(angle)])
    assert (normals(9, Purpose.NOISE, [5], 4)[0, 2:] == expected).all()


def test_normals_are_bit_stable():
    drawn = normals(3, Purpose.AUG_NOISE, [0, 2**40 + 1], 3)
    assert drawn.tobytes().hex() == "1616b13f61e5f13e94ac633f4dc419be3013393f116563bf"


def test_a_draw_depends_on_seed_purpose_and_position_only():
    positions = [3, 2**35 + 3, 11]
    drawn = normals(1, Purpose.NOISE, positions, 101)
    for i, position in enumerate(positions):
        assert (normals(1, Purpose.NOISE, [position], 101)[0] == drawn[i]).all()
        assert (normals(1, Purpose.NOISE, [position], 7)[0] == drawn[i, :7]).all()
    others = [normals(2, Purpose.NOISE, [3], 101), normals(1, Purpose.AUG_NOISE, [3], 101)]
    assert all((other[0] != drawn[0]).any() for other in [*others, drawn[1:2], drawn[2:3]])


def test_a_draw_larger_than_a_chunk_has_the_same_beginning():
    assert (normals(0, 0, [1], 100_001)[0, :10] == normals(0, 0, [1], 10)[0]).all()


@pytest.mark.parametrize(("rows", "count"), [(1, 300_001), (40, 3 * 64 * 64), (3, 70_000)])
def test_normals_are_the_same_bits_whatever_number_of_threads_draws_them(rows, count):
    before, drawn = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            drawn.append(normals(7, Purpose.NOISE, np.arange(rows), count))
    finally:
        torch.set_num_threads(before)
    assert (drawn[0] == drawn[1]).all()
    assert (drawn[0] == drawn[2]).all()


def test_threads_pass_their_errors_on_and_end_with_the_draw(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    before = threading.active_count()
    with pytest.raises(AssertionError, match=r"positions are below 2\^48"):
        normals(0, Purpose.NOISE, [0, 2**50], 300_000)
    normals(0, Purpose.NOISE, [0, 1], 300_000)
    assert threading.active_count() == before


def test_small_draws_start_no_thread(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    monkeypatch.setattr(threading.Thread, "start", None)
    normals(0, Purpose.NOISE, [0], 3 * 64 * 64)
    with pytest.raises(TypeError):
        normals(0, Purpose.NOISE, [0], 300_000)


def test_normals_are_normal():
    drawn = normals(0, Purpose.NOISE, np.arange(1000), 1000).astype(np.float64)
    assert abs(drawn.mean()) < 4e-3
    assert abs(drawn.std() - 1) < 4e-3
    assert abs((drawn**4).mean() - 3) < 0.05
    assert abs((drawn[:, 0::2] * drawn[:, 1::2]).mean()) < 6e-3
    assert np.isfinite(drawn).all()


def test_uniforms_fill_the_unit_interval():
    drawn = uniforms(0, Purpose.DROP, np.arange(100_000))
    assert drawn.min() >= 0
    assert drawn.max() < 1
    assert np.abs(np.histogram(drawn, 20, (0, 1))[0] / 5000 - 1).max() < 0.06


@pytest.mark.parametrize("global_batch", [1, 7, 64])
def test_times_of_a_global_batch_have_one_in_each_stratum(global_batch: int):
    for step in (0, 9):
        times = strata(4, step, global_batch)
        assert sorted((times * global_batch).astype(int)) == list(range(global_batch))
        assert ((times > 0) & (times < 1)).all()


def test_the_stratum_of_a_place_in_the_batch_changes_from_step_to_step():
    places = [(strata(4, step, 64) * 64).astype(int).tolist() for step in range(3)]
    assert places[0] != places[1] != places[2]
