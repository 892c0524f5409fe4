import io

import pytest
from PIL import Image

from eval import film, lineups
from eval.prompts import Item, items
from imagen.cascade import Cascade, SampleOptions


def test_the_first_items_of_different_prompts_are_shown():
    given = [Item(prompt, i) for i, prompt in enumerate("aabcade")]
    assert film.chosen(given) == (Item("a", 0), Item("b", 2), Item("c", 3), Item("d", 5))


@pytest.mark.slow
def test_a_film_shows_each_step_of_each_member_and_ends_with_the_sample(project):
    cascade = Cascade.of_snapshots(lineups.newest(project).snapshots, project.text)
    shown = film.chosen(items(project.eval))
    data = film.draw(cascade, shown, SampleOptions(steps=5))
    with Image.open(io.BytesIO(data)) as animation:
        assert animation.format == "WEBP"
        assert animation.n_frames == 5 + 5
        assert animation.width > 4 * 90
        last = animation.n_frames - 1
        animation.seek(last)
        animation.load()
        assert animation.info["duration"] == film.LAST_MS
        end = animation.convert("L").resize((animation.width // 3, animation.height // 3))
    alone = cascade.draw(shown[0].prompt, shown[0].seed, SampleOptions(steps=5))
    cell = end.crop((0, 0, 32, 32))
    pairs = zip(cell.tobytes(), alone.tobytes(), strict=True)
    assert sum(abs(a - b) for a, b in pairs) / 32**2 < 25  # lossy; another picture differs by > 60
    assert film.draw(cascade, shown, SampleOptions(steps=5)) == data
