"""The judge of patches."""

import torch

from calumma.tokens.vq.discriminator import PatchDiscriminator


def test_each_patch_gets_a_logit() -> None:
    judge = PatchDiscriminator(channels=32, num_layers=2)
    assert judge(torch.zeros(2, 3, 32, 32)).shape == (2, 1, 6, 6)


def test_an_image_is_judged_the_same_in_any_company() -> None:
    torch.manual_seed(0)
    judge = PatchDiscriminator(channels=32, num_layers=2)
    pixels = torch.randn(3, 3, 32, 32)
    torch.testing.assert_close(judge(pixels)[:1], judge(pixels[:1]))


def test_a_far_corner_does_not_move_a_patch() -> None:
    judge = PatchDiscriminator(channels=32, num_layers=1)
    pixels = torch.randn(1, 3, 64, 64)
    before = judge(pixels)
    with torch.no_grad():
        changed = judge(torch.cat([pixels[..., :60], -pixels[..., 60:]], -1))
    # GroupNorm looks at the whole image, so a patch may shift a little, but not as its own does
    moved = (changed - before).abs()[0, 0]
    assert moved[:, -2:].max() > 5 * moved[:, :8].max()
