"""Training and sampling see the same thing: what a network receives, by the real code of both."""

import dataclasses

import torch

from imagen.cascade import Cascade, Member
from imagen.diffusion.prediction import from_x0
from imagen.diffusion.schedule import alpha_sigma
from imagen.member import loss
from imagen.network.conditions import Conditions
from imagen.network.features import FEATURES, sinusoids
from imagen.text.batch import batch as text_batch
from imagen.text.config import TextConfig
from imagen.text.encoder import load_encoder
from train.data import to_device
from train.worker import Inputs

CPU = torch.device("cpu")
SEEN = [field.name for field in dataclasses.fields(Conditions)]


def microbatch(helpers, project, member, count=32):
    config = helpers.make_config(project, global_batch=count, microbatch=count)
    return Inputs.open(config, member).samples(config, member).__getitems__(range(count))


class Spy(torch.nn.Module):
    """Notes what it is given."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.calls = []

    def forward(self, x, conditions):
        self.calls.append({"x": x, **{name: getattr(conditions, name) for name in SEEN}})
        return torch.zeros_like(x)


class Oracle(torch.nn.Module):
    """A base member that has learnt to draw just these images (b, c, h, w)."""

    def __init__(self, images):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.images = images

    def forward(self, x, conditions):
        logsnr = logsnr_of(conditions.time)
        alpha, sigma = (z[:, None, None, None] for z in alpha_sigma(logsnr))
        return from_x0("v", self.images, x, alpha.float(), sigma.float())


def logsnr_of(time):
    """Undo `sinusoids` by looking its values up."""
    grid = torch.linspace(-15, 15, 30001, dtype=torch.float64)
    table = sinusoids(grid)
    return grid[torch.cdist(time, table).argmin(dim=1)]


def test_the_lowres_image_of_training_is_what_the_base_member_is_trained_to_draw(helpers, project):
    base, sr = microbatch(helpers, project, "base"), microbatch(helpers, project, "sr1")
    assert torch.equal(base.pixels, sr.lowres)


def test_an_sr_member_receives_the_same_in_training_and_in_sampling(helpers, project):
    part = microbatch(helpers, project, "sr1")
    config = helpers.make_config(project)
    member = config.members["sr1"]
    level = torch.full((32,), member.sampling.aug_level, dtype=torch.float64)
    batch = dataclasses.replace(to_device(part, CPU), aug_level=level)
    trained = Spy()
    loss(trained, member, batch)

    sampled = Spy()
    images = Oracle(batch.lowres)
    encoder = load_encoder(TextConfig())
    base = dataclasses.replace(
        config.members["base"],
        sampling=dataclasses.replace(config.members["base"].sampling, guidance_scale=1.0),
    )
    members = {"base": Member(base, images, {}), "sr1": Member(member, sampled, {})}
    Cascade(members, encoder, "").sample(["seven"] * 32, range(32))
    ours, theirs = trained.calls[0], sampled.calls[0]
    conditional = slice(0, 32)  # the half of the guided batch that sees the text
    torch.testing.assert_close(ours["aug"], theirs["aug"][conditional])
    assert ours["time"].shape[1] == theirs["time"].shape[1] == FEATURES
    shown = [ours["lowres"].flatten(), theirs["lowres"][conditional].flatten()]
    marks = torch.tensor([0.01, 0.1, 0.5, 0.9, 0.99])
    torch.testing.assert_close(*(z.quantile(marks) for z in shown), atol=0.06, rtol=0.0)
    torch.testing.assert_close(*(z.std() for z in shown), atol=0.02, rtol=0.0)
    # pixel by pixel up to the noise of the augmentation, whose draws differ
    noise = alpha_sigma(logsnr_of(ours["aug"][:1]))[1].item()
    difference = ours["lowres"] - theirs["lowres"][conditional]
    assert difference.square().mean().sqrt() < 2**0.5 * noise
    assert 0.9 < theirs["x"].std() < 1.1


def test_text_is_padded_alike_in_training_and_in_sampling(helpers, project):
    part = microbatch(helpers, project, "base")
    trained = to_device(part, CPU).text
    rows = [row.float().numpy() for row in part.tokens.split(part.lengths.tolist())]
    emb, mask = text_batch(rows)
    length = mask.shape[1]
    assert torch.equal(trained.mask[:, :length], mask)
    assert not trained.mask[:, length:].any()
    assert torch.equal(trained.emb[:, :length][mask], emb[mask])
