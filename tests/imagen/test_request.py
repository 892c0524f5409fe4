import dataclasses

import numpy as np
import pytest
import torch

from imagen.editing import Edit
from imagen.errors import ConfigError
from imagen.request import Request, plan
from imagen.sampling import Extras, SampleOptions

DROPPED = {"images_seen": 64, "train": {"caption_drop": 0.1}}
NEVER = {"images_seen": 64, "train": {"caption_drop": 0.0}}
PICTURE = torch.zeros(1, 1, 32, 32)
HOLE = torch.ones(1, 1, 32, 32)


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
        ({"sampler": "ddim"}, {"mask": HOLE}, "sampler 'ddim' has no effect in a masked edit"),
        (
            {"members": {"sr1": {"sampler": "heun"}}},
            {"mask": HOLE},
            "sampler 'heun' has no effect in a masked edit.*\n\nhint: leave the sampler out",
        ),
        (
            {"sampling": {"stochasticity": 0.5}, "sampler": "ddim", "last": "base"},
            {"mask": HOLE},
            "sampler 'ddim' has no effect in a masked edit",
        ),
        (
            {"members": {"sr1": {"sampler": "ddim", "stochasticity": 0.5}}, "last": "base"},
            {},
            "options.members.sr1 has no effect: only base runs\n\nhint: leave sr1 out, or let it",
        ),
        (
            {"members": {"base": {"steps": 3}}},
            {"first": "sr1"},
            "options.members.base has no effect: only sr1, sr2 runs",
        ),
        ({"aug_level": 0.3, "last": "base"}, {}, "aug_level 0.3 has no effect on base, which has"),
        ({"sampling": {"aug_level": 0.3}, "last": "base"}, {}, "aug_level 0.3 has no effect on"),
        (
            {"members": {"base": {"aug_level": 0.3}}},
            {},
            "aug_level 0.3 has no effect on base(.|\n)*hint: it is the noise on what",
        ),
    ],
)
def test_what_these_members_cannot_do_is_refused(configs, options, edit, message):
    chosen = Edit(**{"image": PICTURE} | edit) if edit else None
    with pytest.raises(ConfigError, match=message):
        planned(configs, SampleOptions(**options), chosen)


def test_stochasticity_has_no_effect_in_a_masked_edit(configs):
    noisy = dataclasses.replace(configs["base"].sampling, sampler="ddim")
    members = {"base": dataclasses.replace(configs["base"], sampling=noisy)}
    edit = Edit(image=PICTURE, mask=HOLE)
    for options in (
        {"sampling": {"stochasticity": 0.5}},
        {"members": {"base": {"stochasticity": 0}}},
    ):
        with pytest.raises(
            ConfigError, match=r"stochasticity 0(.5)? has no effect in a masked edit"
        ):
            planned(members, SampleOptions(**options), edit)
    planned(members, SampleOptions(sampling={"stochasticity": None}), edit)


@pytest.mark.parametrize(
    ("edit", "last", "message"),
    [
        (
            {"size": 16},
            None,
            "edit.image is 16 x 16 pixels, smaller than the 32 x 32 of member sr2",
        ),
        ({"size": 8}, "sr1", r"8 x 8 .*the 16 x 16 of member sr1(.|\n)*hint: .* never enlarged"),
        ({"size": 4, "first": "sr1"}, None, "4 x 4 pixels, smaller than the 8 x 8 of member base"),
        ({"size": 8, "first": "sr2"}, None, "8 x 8 pixels, smaller than the 16 x 16 of member sr1"),
        ({"size": 16, "first": "sr2", "strength": 0.5}, None, "the 32 x 32 of member sr2"),
    ],
)
def test_pictures_are_never_enlarged(configs, edit, last, message):
    size = edit.pop("size")
    images = {s: Edit(image=torch.zeros(1, 1, s, s), **edit) for s in (size, 2 * size)}
    options = SampleOptions(last=last)
    planned(configs, options, images[2 * size])
    with pytest.raises(ConfigError, match=message):
        planned(configs, options, images[size])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("abc", [1, 2, 3]), r"prompts is 'abc' \(str\), not a list\n\nhint: .* prompts=\['abc'\]"),
        (([3], [1]), r"prompts\[0\] is 3 \(int\), not a text"),
        ((["a"], 5), "seeds is 5 \\(int\\), not a list\n\nhint: give one for each image: seeds="),
        ((["a"], [1.0]), r"seeds\[0\] is 1.0 \(float\), not a whole number"),
        ((["a", "b"], [1, "2"]), r"seeds\[1\] is '2' \(str\)"),
        ((["a"], torch.tensor([1])), r"seeds\[0\] is tensor\(1\) \(Tensor\)"),
        ((["a"], [True]), r"seeds\[0\] is True \(bool\)"),
        ((["a"], [1], {"steps": 3}), r"options is {'steps': 3} \(dict\), not SampleOptions"),
        ((["a"], [1], SampleOptions(), PICTURE), r"edit is tensor.* \(Tensor\), not an Edit"),
        ((["a"], [1], SampleOptions(), None, {}), r"extras is {} \(dict\), not Extras"),
    ],
)
def test_arguments_of_another_type_are_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        Request(*arguments)


def test_seeds_and_prompts_may_be_what_numpy_has():
    request = Request(np.array(["a", "b"]), np.arange(2))
    assert (request.prompts, request.seeds) == (["a", "b"], [0, 1])
    assert [type(seed) for seed in request.seeds] == [int, int]


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
    planned(configs, SampleOptions(negative="", guidance_scale=1.0))


def test_a_negative_prompt_is_refused_where_the_label_would_stay(toy):
    members = {"base": toy.with_network(toy.BASE, num_classes=5), "sr1": toy.SR}
    labels = Extras(labels=torch.tensor([3]))
    with pytest.raises(
        ConfigError, match=r"'blur' for member base, which has classes(.|\n)*set guidance_scale 1"
    ):
        planned(members, SampleOptions(negative="blur"), extras=labels)
    plain = {"base": {"guidance_scale": 1.0}}
    planned(members, SampleOptions(negative="blur", members=plain), extras=labels)
    planned(members, extras=labels)


@pytest.mark.parametrize(
    ("extras", "message"),
    [
        ({"images": torch.zeros(1, 2, 4, 4)}, "labels is missing: member sr1 has num_classes 5"),
        ({"labels": torch.tensor([3])}, "images is missing: member sr1 has image_channels 2"),
        ({"labels": torch.tensor([5])}, r"labels, for sr1, has values from 5 to 5, .*\[0, 5\)"),
        ({"labels": [3]}, "labels, for sr1, is a list, not a torch tensor"),
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
