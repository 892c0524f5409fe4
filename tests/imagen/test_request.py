import dataclasses

import pytest
import torch

from imagen.editing import Edit
from imagen.errors import ConfigError
from imagen.request import Request, plan
from imagen.sampling import Extras, SampleOptions

DROPPED = {"images_seen": 64, "train": {"caption_drop": 0.1}}
NEVER = {"images_seen": 64, "train": {"caption_drop": 0.0}}
PICTURE = torch.zeros(1, 1, 16, 16)


@pytest.fixture
def configs(toy):
    return {"base": toy.BASE, "sr1": toy.SR, "sr2": dataclasses.replace(toy.SR, size=32)}


def planned(configs, options=None, edit=None, extras=None, provenance=DROPPED):
    request = Request(["a"], [1], options or SampleOptions(), edit, extras or Extras())
    return plan(request, configs, dict.fromkeys(configs, provenance))


def test_members_run_from_the_first_of_an_edit_to_the_last_wanted(configs):
    assert list(planned(configs)) == ["base", "sr1", "sr2"]
    assert list(planned(configs, SampleOptions(last="sr1"))) == ["base", "sr1"]
    edit = Edit(image=PICTURE, first="sr1")
    assert list(planned(configs, edit=edit)) == ["sr1", "sr2"]
    assert list(planned(configs, SampleOptions(last="sr1"), edit)) == ["sr1"]


def test_members_run_as_the_options_say(configs):
    options = SampleOptions(steps=5, members={"sr1": {"guidance_scale": 1.0}})
    sampling = {name: config.sampling for name, config in planned(configs, options).items()}
    assert [s.steps for s in sampling.values()] == [5, 5, 5]
    assert [s.guidance_scale for s in sampling.values()] == [3.0, 1.0, 3.0]


@pytest.mark.parametrize(
    ("options", "edit", "message"),
    [
        ({"last": "sr3"}, {}, "options.last has 'sr3', .*\n\nhint: members: base, sr1, sr2"),
        ({"members": {"srl": {"steps": 3}}}, {}, "options.members has 'srl', which is no member"),
        ({"last": "base"}, {"first": "sr1"}, "options.last 'base' comes before edit.first 'sr1'"),
        ({}, {"first": "sr9"}, "edit.first 'sr9' is no member"),
        ({"sampler": "ddim"}, {"mask": PICTURE}, "sampler 'ddim' has no effect in a masked edit"),
        (
            {"members": {"sr1": {"sampler": "heun"}}},
            {"mask": PICTURE},
            "sampler 'heun' has no effect in a masked edit.*\n\nhint: leave the sampler out",
        ),
    ],
)
def test_what_these_members_cannot_do_is_refused(configs, options, edit, message):
    chosen = Edit(**{"image": PICTURE} | edit) if edit else None
    with pytest.raises(ConfigError, match=message):
        planned(configs, SampleOptions(**options), chosen)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "guidance_scale 3.0 for member base, which was trained without null text"),
        ({"guidance_scale": 0.0}, "guidance_scale 0.0 for member base"),
        ({"guidance_scale": 1.0, "negative": "blur"}, "a negative prompt for member base"),
        (
            {"guidance_scale": 1.0, "members": {"sr1": {"guidance_scale": 2.0}}},
            r"guidance_scale 2.0 for member sr1(.|\n)*hint: .*train.sr1.caption_drop=0.1",
        ),
    ],
)
def test_guidance_of_a_member_that_never_saw_null_text_is_refused(configs, options, message):
    with pytest.raises(ConfigError, match=message):
        planned(configs, SampleOptions(**options), provenance=NEVER)


def test_a_member_that_never_saw_null_text_is_sampled_without_guidance(configs):
    planned(configs, SampleOptions(guidance_scale=1.0), provenance=NEVER)
    planned(configs, SampleOptions(last="base"), provenance={})  # nothing is known: allowed
    before = {"earlier_recipes": [{"from": 0, "recipe": {"caption_drop": 0.1}}], **NEVER}
    planned(configs, provenance=before)


def test_members_without_text_and_class_need_no_null_text(toy):
    planned({"base": toy.BARE}, SampleOptions(guidance_scale=4.0), provenance=NEVER)


def test_a_negative_prompt_that_nothing_is_guided_by_is_refused(toy, configs):
    with pytest.raises(ConfigError, match="negative prompt 'blur' has no effect"):
        planned(configs, SampleOptions(negative="blur", guidance_scale=1.0))
    with pytest.raises(ConfigError, match="negative prompt 'blur' has no effect"):
        planned({"base": toy.BARE}, SampleOptions(negative="blur"))
    planned(configs, SampleOptions(negative="blur"))


@pytest.mark.parametrize(
    ("extras", "message"),
    [
        ({"images": torch.zeros(1, 2, 4, 4)}, "labels is missing: member sr1 has num_classes 5"),
        ({"labels": torch.tensor([3])}, "images is missing: member sr1 has image_channels 2"),
        ({"labels": torch.tensor([5])}, r"labels, for sr1, has values from 5 to 5, .*\[0, 5\)"),
        ({"labels": torch.tensor([1, 2])}, r"labels, for sr1, is int64 \(2,\), not int64 \(1,\)"),
        ({"images": torch.zeros(1, 3, 4, 4)}, r"images is \(1, 3, 4, 4\), .*\(1, 2, h, w\)"),
        ({"images": torch.full((1, 2, 4, 4), 99.0)}, "images has values from 99 to 99"),
    ],
)
def test_labels_and_images_that_do_not_fit_are_refused(toy, extras, message):
    members = {"base": toy.BASE, "sr1": toy.with_network(toy.SR, num_classes=5, image_channels=2)}
    fitting = {"labels": torch.tensor([3]), "images": torch.zeros(1, 2, 4, 4)}
    both = "missing" not in message
    planned(members, extras=Extras(**fitting))
    with pytest.raises(ConfigError, match=message):
        planned(members, extras=Extras(**(fitting | extras if both else extras)))


def test_labels_that_no_member_takes_are_refused(configs):
    with pytest.raises(ConfigError, match=r"extras\.labels is given, but no member takes it"):
        planned(configs, extras=Extras(labels=torch.tensor([3])))
