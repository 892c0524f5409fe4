import pytest
import torch
from torch.nn import functional

from imagen.network.attention import MASKED, Attentions, attend, attend_linearly
from imagen.network.blocks import GlobalContext, ResBlock, as_image, as_pixels
from imagen.network.resample import Downsample, PixelShuffle, convolution
from imagen.network.text import Resampler

LAST = torch.channels_last


def qkv(dtype=torch.float64):
    g = torch.Generator().manual_seed(0)
    return [torch.randn(2, n, 8, generator=g, dtype=dtype) for n in (3, 5, 5)]


def test_attention_is_softmax_of_products_over_the_keys_that_are_seen():
    q, k, v = qkv()
    bias = torch.zeros(2, 5).double()
    bias[:, 3:] = MASKED
    out = attend(q, k, v, bias, heads=2)
    for head in (slice(0, 4), slice(4, 8)):
        weights = (q[..., head] @ k[:, :3, head].mT / 2).softmax(-1)
        torch.testing.assert_close(out[..., head], weights @ v[:, :3, head])


def test_linear_attention_is_the_product_of_three_matrices():
    q, k, v = qkv()
    bias = torch.zeros(2, 5).double()
    bias[:, 3:] = MASKED
    out = attend_linearly(q, k, v, bias, heads=2)
    for head in (slice(0, 4), slice(4, 8)):
        # the matrix (pixels, keys) that is never formed: its rows are positive and sum to one
        weights = q[..., head].softmax(-1) @ k[:, :3, head].softmax(1).mT
        torch.testing.assert_close(weights.sum(-1), torch.ones(2, 3).double())
        torch.testing.assert_close(out[..., head], weights @ v[:, :3, head])


def test_pixels_of_a_channels_last_image_are_a_view():
    x = torch.randn(2, 8, 4, 6).contiguous(memory_format=LAST)
    pixels = as_pixels(x)
    assert pixels.is_contiguous()
    assert pixels.data_ptr() == x.data_ptr()
    assert as_image(pixels, x).is_contiguous(memory_format=LAST)
    assert torch.equal(as_image(pixels, x), x)


def test_pixel_shuffle_starts_as_nearest_neighbour():
    torch.manual_seed(0)
    layer = PixelShuffle(6, 4)
    x = torch.randn(2, 6, 3, 5).contiguous(memory_format=LAST)
    first = functional.conv2d(x, layer.conv.weight[:4], layer.conv.bias[:4])
    nearest = functional.interpolate(first, scale_factor=2.0, mode="nearest")
    torch.testing.assert_close(layer(x), nearest)


def test_pixel_shuffle_lays_four_groups_of_channels_side_by_side():
    layer = PixelShuffle(2, 1)
    torch.nn.init.zeros_(layer.conv.weight)
    layer.conv.bias.data = torch.tensor([1.0, 2.0, 3.0, 4.0])
    assert layer(torch.zeros(1, 2, 1, 1)).flatten().tolist() == [1.0, 2.0, 3.0, 4.0]
    assert layer(torch.zeros(1, 2, 1, 2))[0, 0].tolist() == [[1, 2, 1, 2], [3, 4, 3, 4]]


@pytest.mark.parametrize("kernels", [(3,), (2,), (2, 4), (3, 5, 7)])
def test_any_kernels_halve_exactly(kernels):
    assert Downsample(4, 8, kernels)(torch.zeros(1, 4, 6, 10)).shape == (1, 8, 3, 5)


def test_a_stem_of_several_kernels_sees_as_far_as_its_largest():
    stem = convolution(1, 8, (3, 7, 15))
    x = torch.zeros(1, 1, 33, 33, requires_grad=True)
    stem(x)[0, :, 16, 16].sum().backward()
    seen = x.grad[0, 0].nonzero()
    assert seen.min() == 16 - 7
    assert seen.max() == 16 + 7


def test_the_global_gate_pools_what_attention_picks():
    torch.manual_seed(0)
    gate = GlobalContext(4)
    gate.score.weight.data = torch.tensor([[100.0, 0.0, 0.0, 0.0]])
    x = torch.zeros(2, 4, 3, 3)
    x[:, :, 1, 2] = torch.tensor([1.0, 2.0, -3.0, 4.0])  # the only pixel with a score
    alone = x[:, :, 1:2, 2:3]
    torch.testing.assert_close(gate(x), gate(alone))
    assert gate(x).shape == (2, 4, 1, 1)
    assert (gate(x) > 0).all()
    assert (gate(x) < 1).all()


def test_branches_start_as_nothing(configs):
    torch.manual_seed(0)
    x, cond = torch.randn(2, 16, 4, 4), torch.randn(2, 16)
    text = torch.randn(2, 3, 16)
    assert torch.equal(ResBlock(16, 16, 16, 0.0, global_context=True)(x, cond), x)
    attentions = Attentions(configs["everything_base"], 16, ["self", "linear", "cross"])
    assert torch.equal(attentions(x, text, torch.zeros(2, 3)), x)


def test_a_level_without_attention_has_no_parameters(configs):
    assert not list(Attentions(configs["everything"], 16, []).parameters())


def test_latents_are_as_many_for_any_number_of_tokens():
    torch.manual_seed(0)
    resampler = Resampler(16, 4)
    for tokens in (1, 9):
        assert resampler(torch.randn(2, tokens, 16), torch.zeros(2, tokens)).shape == (2, 4, 16)


def test_everything_stays_channels_last(config, inputs, awake):
    net, (x, given) = awake(config), inputs(config)
    images, gradients = [], []

    def watch(module, args, out):
        for image in (out, *args):
            if isinstance(image, torch.Tensor) and image.ndim == 4 and image.shape[1] > 7:
                images.append(image.is_contiguous(memory_format=LAST))
                # half of a joined gradient is a view: its channels are side by side all the same
                image.register_hook(lambda gradient: gradients.append(gradient.stride(1) == 1))

    for module in net.modules():
        module.register_forward_hook(watch)
    net(x, given).sum().backward()
    assert len(images) == len(gradients) > 50
    assert all(images)
    assert all(gradients)
