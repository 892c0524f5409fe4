import pytest

from imagen import storage
from imagen.errors import ConfigError
from imagen.prompts import read_prompts


def test_blank_lines_and_outer_spaces_are_left_out():
    storage.put("memory://prompts/a.txt", b"  seven \n\n\tthe digit 3\r\n# not a comment\n")
    found = read_prompts("memory://prompts/a.txt")
    assert found == ["seven", "the digit 3", "# not a comment"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b" \n\n", "has no prompts: every line is blank"),
        (b"\xff\xfe\x00", "is not UTF-8 text"),
    ],
)
def test_a_file_without_prompts_is_refused(data, message):
    storage.put("memory://prompts/b.txt", data)
    with pytest.raises(ConfigError, match=message):
        read_prompts("memory://prompts/b.txt")


def test_a_missing_file_is_named():
    with pytest.raises(ConfigError, match="prompts file `memory://no-file` does not exist"):
        read_prompts("memory://no-file")
