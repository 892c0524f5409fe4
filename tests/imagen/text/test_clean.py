import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagen.text.clean import VERSIONS, clean


@pytest.mark.parametrize("cleaning", ["light", "web"])
@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("  two\t\nwords  ", "two words"),
        ("cafe\u0301", "caf\u00e9"),
        ("a\x00b\ufeffc", "a b c"),
        ("#7 jersey, C++ vs C# 3x4 grid, 猫", "#7 jersey, C++ vs C# 3x4 grid, 猫"),
        ("7", "7"),
        ("a cat.jpg on a mat", "a cat.jpg on a mat"),
        ("1 < 2 & 3 > 2 (R&D), 10:30, page 1234567", "1 < 2 & 3 > 2 (R&D), 10:30, page 1234567"),
        ("a photo.", "a photo."),
        ("vector<int> v; a<b and c>d, <smiling>", "vector<int> v; a<b and c>d, <smiling>"),
        ("R&D &copy it, ?a=1&lt=2", "R&D &copy it, ?a=1&lt=2"),
        ("?x&copyfoo; &parameter;", "?x&copyfoo; &parameter;"),
        (f"&#{'1' * 5000};", f"&#{'1' * 5000};"),
        ("\u200b \r\n", ""),
    ],
)
def test_cleaning_keeps_everything_that_has_a_meaning(cleaning, caption, expected):
    assert clean(caption, cleaning) == expected
    assert clean(clean(caption, cleaning), cleaning) == expected


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("caf&eacute; &amp;quot;Luna&amp;quot; &#169; 2020", 'café "Luna" © 2020'),
        ("a <b>red</b> <br/>cat<!-- x -->", "a red cat"),
        ("&lt;p class='x'&gt;a dog&lt;/p&gt;", "a dog"),
        ("an <A HREF='x y' class=z>old</A> &lt;br /&gt; page", "an old page"),
        ('<!DOCTYPE html><iframe src="https://x.y/z" allowfullscreen></iframe> a cat', "a cat"),
        ("<img src='a'alt='b' hidden>a <i >cat</i\n>", "a cat"),
        ("&amp;lt;i&amp;gt;nested&amp;lt;/i&amp;gt;", "nested"),
        ("<PERSON> at the Oscars", "person at the Oscars"),
        ("a cat (https://x.y/z?q=1) www.cats.org/a_b sits", "a cat ( ) sits"),
        ("cute-cat_on+the-sofa.JPG", "cute cat on the sofa"),
        ("IMG_1234.JPG", ""),
        ("DSC00042", ""),
        ("2019-07-31_12.30.55.png", ""),
        ("https://example.com/a.jpg", ""),
    ],
)
def test_web_cleaning_removes_what_no_person_wrote(caption, expected):
    assert clean(caption, "web") == expected
    assert clean(caption) != expected


def test_no_cleaning_leaves_a_caption_alone():
    assert clean(" a\x00 &amp;\n", "none") == " a\x00 &amp;\n"


@given(st.text("a1 <>&;#./-:ltgqmp\u0301\u200b\n", max_size=40), st.sampled_from(list(VERSIONS)))
def test_cleaning_what_is_clean_changes_nothing(caption, cleaning):
    once = clean(caption, cleaning)
    assert clean(once, cleaning) == once
    assert len(once) <= len(caption)
