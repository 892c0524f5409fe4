import numpy as np
import pytest

from imagen import storage
from imagen.data import arrays


@pytest.mark.parametrize("dtype", [np.float16, np.int32, "S7"])
@pytest.mark.parametrize("shape", [(3, 4), (7,), (1, 1)])
def test_a_file_written_in_place_has_the_bytes_that_numpy_writes(tmp_path, dtype, shape):
    values = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
    path = str(tmp_path / "x.npy")
    entry = arrays.write_npy(path, shape, dtype, lambda out: np.copyto(out, values))
    assert storage.get(path) == arrays.to_npy(values)
    assert entry == {"bytes": storage.size(path), "crc32c": storage.crc32c(storage.get(path))}
    np.testing.assert_array_equal(arrays.open_npy(path, entry, big=True), values)


def test_a_file_whose_filling_fails_is_not_published(tmp_path):
    def fails(out: np.ndarray) -> None:
        out[:] = 1
        raise ValueError("half way")

    with pytest.raises(ValueError, match="half way"):
        arrays.write_npy(str(tmp_path / "x.npy"), (3,), np.float16, fails)
    assert not list(tmp_path.iterdir())
