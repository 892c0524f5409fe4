"""What machines of a cluster have that are not there yet: $IMAGEN_EXPECTS."""

import pytest

from imagen.errors import ConfigError
from runtime import session
from train.machines import VALIDATION


@pytest.mark.parametrize("text", [None, "", " "])
def test_a_cluster_that_says_nothing_has_what_is_there(monkeypatch, text):
    monkeypatch.delenv(session.EXPECTS, raising=False)
    if text is not None:
        monkeypatch.setenv(session.EXPECTS, text)
    assert session.expected() == {}


def test_every_fence_that_stages_look_for_can_be_named(monkeypatch):
    from eval.sampling import POOL

    names = ["GPU", "imagen_base", "imagen_sr1", "imagen_sr12", POOL, VALIDATION]
    monkeypatch.setenv(session.EXPECTS, ", ".join(names))
    assert session.expected() == dict.fromkeys(names, 1.0)


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("GPU,imagen_bas", "imagen_bas"),
        ("gpu", "gpu"),
        ("GPU imagen_base", "GPU imagen_base"),
        ("GPU,", ""),
        ("GPU=1", "GPU=1"),
        ("imagen_sr0", "imagen_sr0"),
        ("imagen_base_2", "imagen_base_2"),
    ],
)
def test_what_no_stage_asks_for_is_refused(monkeypatch, text, wrong):
    monkeypatch.setenv(session.EXPECTS, text)
    with pytest.raises(ConfigError) as caught:
        session.expected()
    assert caught.value.message.startswith(f"{session.EXPECTS}={text}: `{wrong}` is no resource")
    assert "imagen_eval" in (caught.value.hint or "")
