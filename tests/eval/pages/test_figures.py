import pytest

from eval.figures import Figure, figures, headlines, jsonable, told

METRICS = {
    "digit_accuracy": {"value": 0.935, "interval": [0.9, 0.96], "n": 200, "hits": 187},
    "distribution": {"inception": {"fd": {"value": 12.5, "interval": None}, "n": 200}},
    "sweeps": {"guidance": [{"value": 1.0, "accuracy": {"value": 1, "interval": None}}]},
    "losses": {"base": {"loss": {"value": None, "interval": None, "n": 0}, "bins": [{"mean": 1}]}},
    "images": 200,
}


def test_every_figure_is_found_by_its_path_and_points_of_sweeps_are_none():
    found = figures(METRICS)
    assert found == {
        "digit_accuracy": Figure(0.935, (0.9, 0.96), 200),
        "distribution.inception.fd": Figure(12.5, None, None),
        "losses.base.loss": Figure(None, None, 0),
    }


def test_a_line_of_metrics_jsonl_has_plain_values():
    line = jsonable(figures(METRICS))
    assert line["digit_accuracy"] == {"value": 0.935, "interval": [0.9, 0.96], "n": 200}
    assert line["losses.base.loss"] == {"value": None, "interval": None, "n": 0}


@pytest.mark.parametrize(
    ("key", "title", "better"),
    [
        ("distribution.inception.fd", "FID", "lower"),
        ("distribution.pca.fd", "Fréchet distance (pca)", "lower"),
        ("distribution.pca.heldout.fd", "Fréchet distance of real images", None),
        ("shapes.heldout.all_right", "Scenes drawn all right, new combinations", "higher"),
        ("fidelity.sr1.colour_drift", "Colour drift (sr1)", "lower"),
        ("mine.new_thing", "mine: new thing", None),
    ],
)
def test_a_figure_has_a_title_and_a_direction(key, title, better):
    assert (told(key).title, told(key).better) == (title, better)


def test_a_difference_is_for_the_better_in_the_direction_of_its_figure():
    assert told("digit_accuracy").improved(0.1) is True
    assert told("distribution.pca.fd").improved(0.1) is False
    assert told("memorisation.nearer_than_heldout").improved(0.1) is None
    assert told("digit_accuracy").improved(0.0) is None


def test_values_are_told_as_people_read_them():
    how = told("digit_accuracy")
    assert how.text(0.9351) == "93.5%"
    assert how.text(None) == "none"
    assert how.change(-0.021) == "−2.1 points"
    assert how.span((-0.021, 0.3)) == "−2.1 to +30.0 points"
    assert told("distribution.pca.fd").interval((0.01234, 1234.5)) == "0.0123 to 1,234"


def test_headlines_come_in_order_and_leave_out_what_real_images_score():
    keys = ["clip.score", "distribution.pca.heldout.fd", "distribution.pca.fd", "digit_accuracy"]
    assert headlines(keys) == ["digit_accuracy", "distribution.pca.fd", "clip.score"]
