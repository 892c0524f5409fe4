import pickle

import pytest

from imagen.errors import CheckpointError, ConfigError, ImagenError, ShardError, StorageError


@pytest.mark.parametrize("kind", [ConfigError, ShardError, CheckpointError, StorageError])
def test_every_error_of_a_person_is_an_imagen_error(kind):
    assert issubclass(kind, ImagenError)


def test_the_hint_stands_on_its_own_line():
    assert str(ImagenError("no such key", "did you mean `lr`?")) == (
        "no such key\n\nhint: did you mean `lr`?"
    )


def test_without_a_hint_the_message_is_all():
    assert str(ImagenError("no such key")) == "no such key"


def test_an_error_survives_pickling_as_it_does_between_ray_processes():
    err = pickle.loads(pickle.dumps(ShardError("row 3 is torn", "import again")))
    assert (type(err), err.message, err.hint) == (ShardError, "row 3 is torn", "import again")


def test_a_config_error_is_a_value_error_so_that_pydantic_reports_it_with_its_key():
    assert issubclass(ConfigError, ValueError)


def test_an_untrained_or_damaged_member_is_a_value_error():
    with pytest.raises(ValueError, match="base is not trained"):
        raise CheckpointError("base is not trained")
