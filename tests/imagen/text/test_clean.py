import pytest

from imagen.text.clean import clean


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("  two\t\nwords  ", "two words"),
        ("cafe\u0301", "caf\u00e9"),
        ("a\x00b\ufeffc", "a b c"),
        ("#7 jersey, C++ vs C# 3x4 grid, 猫", "#7 jersey, C++ vs C# 3x4 grid, 猫"),
        ("\u200b \r\n", ""),
    ],
)
def test_cleaning_keeps_everything_that_has_a_meaning(caption, expected):
    assert clean(caption) == expected
    assert clean(clean(caption)) == expected
