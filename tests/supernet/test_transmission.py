import pytest
import torch

from nasc_evo.supernet.transmission import channel_mask, quantize, transmit


def test_quantiser_by_hand():
    x = torch.tensor([0.0, 0.25, 0.5, 1.0]).view(1, 1, 2, 2)
    # 2 bits: levels 0, 1/3, 2/3, 1; 0.25 goes to 1/3, 0.5 (in the middle) to the even code 2
    want = torch.tensor([0.0, 1 / 3, 2 / 3, 1.0]).view(1, 1, 2, 2)
    assert torch.allclose(quantize(x, 2), want, atol=1e-6)


@pytest.mark.parametrize("bits", [2, 4, 6, 8])
def test_quantiser_has_no_more_values_than_bits_allow_and_bounded_error(bits):
    x = torch.randn(3, 5, 16, 16, generator=torch.Generator().manual_seed(0))
    y = quantize(x, bits)
    for image in range(3):
        for channel in range(5):
            assert len(y[image, channel].unique()) <= 2**bits
    step = (x.amax((2, 3)) - x.amin((2, 3))) / (2**bits - 1)
    assert ((y - x).abs().amax((2, 3)) <= 0.51 * step + 2e-3).all()


def test_16_bits_are_half_precision_and_32_bits_the_values():
    x = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(quantize(x, 16), x.half().float())
    assert quantize(x, 32) is x


@pytest.mark.parametrize("bits", [4, 8, 16])
def test_values_beyond_half_precision_become_its_largest(bits):
    x = torch.tensor([-1e9, 0.0, 1e9, 3.0]).view(1, 1, 2, 2)
    y = quantize(x, bits).flatten()
    assert y[[0, 2]].tolist() == pytest.approx([-65504, 65504], rel=1e-6)
    assert y.isfinite().all()


def test_a_constant_channel_survives():
    x = torch.full((1, 2, 4, 4), 0.5)
    assert torch.equal(quantize(x, 4), x)


def test_unsent_channels_are_zero_and_sent_ones_are_untouched():
    x = torch.randn(2, 16, 4, 4, generator=torch.Generator().manual_seed(0))
    kept = channel_mask("01000001", 16)
    assert kept.nonzero().flatten().tolist() == [2, 3, 14, 15]
    y = transmit(x, kept, 32)
    assert torch.equal(y[:, kept], x[:, kept])
    assert (y[:, ~kept] == 0).all()


def test_gradients_pass_straight_through():
    x = torch.randn(1, 8, 4, 4, requires_grad=True)
    transmit(x, channel_mask("10000001", 8), 4).sum().backward()
    assert x.grad[0, :, 0, 0].tolist() == [1, 0, 0, 0, 0, 0, 0, 1]
