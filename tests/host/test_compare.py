"""EasyCache Compare: its numbers against scikit-image's, and what may come in."""

import json
import math

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch.nn.functional import interpolate


def pictures(frames=3, height=40, width=56, channels=3, seed=0):
    """Blotches of colour."""
    rng = torch.Generator().manual_seed(seed)
    coarse = torch.rand(frames, channels, height // 8 + 2, width // 8 + 2, generator=rng)
    return interpolate(coarse, (height, width), mode="bicubic").clamp(0, 1).movedim(1, -1).contiguous()


def noisy(images, amount, seed=1):
    rng = torch.Generator().manual_seed(seed)
    return (images + amount * torch.randn(images.shape, generator=rng)).clamp(0, 1)


@pytest.fixture
def compare(comfy):
    """compare(reference, candidate): (psnr, ssim, difference, report)."""

    def run(reference, candidate):
        before = reference.clone(), candidate.clone()
        psnr, ssim, difference, text = comfy.node("EasyCacheCompare", reference, candidate)
        assert torch.equal(before[0], reference) or before[0].isnan().any()
        assert torch.equal(before[1], candidate) or before[1].isnan().any()
        assert type(psnr) is float and type(ssim) is float
        assert difference.shape == (*reference.shape[:3], 3) and difference.dtype == torch.float32
        assert 0 <= difference.min() <= difference.max() <= 1

        def refuse(constant):
            raise AssertionError(f"{constant} is no JSON")

        return psnr, ssim, difference, json.loads(text, parse_constant=refuse)

    return run


@pytest.mark.parametrize("amount", [0.001, 0.03, 0.4])
@pytest.mark.parametrize("size", [(1, 11, 11), (1, 64, 48), (3, 40, 56)])
def test_the_numbers_are_those_of_scikit_image(compare, size, amount):
    """Catches another window, padding, range or way to average."""
    reference = pictures(*size)
    candidate = noisy(reference, amount)
    psnr, ssim, _, report = compare(reference, candidate)
    a, b = reference.double().numpy(), candidate.double().numpy()
    assert psnr == pytest.approx(peak_signal_noise_ratio(a, b, data_range=1), abs=1e-5)
    similarities = [
        structural_similarity(x, y, channel_axis=-1, data_range=1, gaussian_weights=True, sigma=1.5,
                              use_sample_covariance=False)
        for x, y in zip(a, b, strict=True)
    ]  # fmt: skip
    ratios = [peak_signal_noise_ratio(x, y, data_range=1) for x, y in zip(a, b, strict=True)]
    assert ssim == pytest.approx(np.mean(similarities), abs=2e-6)
    assert [frame["frame"] for frame in report["per_frame"]] == list(range(1, size[0] + 1))
    assert [frame["ssim"] for frame in report["per_frame"]] == pytest.approx(similarities, abs=2e-6)
    assert [frame["psnr"] for frame in report["per_frame"]] == pytest.approx(ratios, abs=1e-5)
    assert report["psnr"] == psnr and report["ssim"] == ssim
    assert report["psnr_least"] == pytest.approx(min(ratios), abs=1e-5)
    assert report["ssim_least"] == pytest.approx(min(similarities), abs=2e-6)
    assert report["frames"] == size[0] and report["identical"] is False


def test_equal_pictures(compare):
    """Infinity has no place in JSON, and a division by zero none in the node; black is where SSIM divides by little."""
    for images in (pictures(), torch.zeros(2, 32, 32, 3)):
        psnr, ssim, difference, report = compare(images, images.clone())
        assert psnr == math.inf and ssim == 1
        assert report["psnr"] is None and report["psnr_least"] is None and report["identical"] is True
        assert [frame["psnr"] for frame in report["per_frame"]] == [None] * len(images)
        assert (difference[:, 24:] == 0).all(), "black below the label"


def test_one_equal_frame_does_not_make_a_video_perfect(compare):
    """The first frame of image-to-video is the given picture in both: a mean of decibels would be infinite."""
    reference = pictures(4)
    candidate = noisy(reference, 0.05)
    candidate[0] = reference[0]
    psnr, _, _, report = compare(reference, candidate)
    error = (reference.double() - candidate).square().mean().item()
    assert psnr == pytest.approx(-10 * math.log10(error), abs=1e-5)
    assert report["per_frame"][0]["psnr"] is None and report["psnr_least"] < psnr
    assert report["identical"] is False


@pytest.mark.parametrize("size", [(1, 1), (2, 2), (1, 30), (8, 8), (10, 40), (11, 10)])
def test_pictures_smaller_than_the_window(compare, size):
    reference = torch.rand(2, *size, 3, generator=torch.Generator().manual_seed(3))
    _, ssim, _, _ = compare(reference, reference.clone())
    assert ssim == 1
    psnr, ssim, _, _ = compare(reference, 1 - reference)
    assert math.isfinite(psnr) and -1 <= ssim < 0.99


def test_what_does_not_fit_is_refused_with_both_shapes(compare):
    """The user has to see which of the two is which, without knowing tensors."""
    with pytest.raises(ValueError, match="reference has 17 frames of 128 x 64 pixels, candidate 16 frames of 128 x 64"):
        compare(torch.zeros(17, 64, 128, 3), torch.zeros(16, 64, 128, 3))
    with pytest.raises(ValueError, match="reference has 1 frame of 30 x 20 pixels, candidate 1 frame of 20 x 30"):
        compare(torch.zeros(1, 20, 30, 3), torch.zeros(1, 30, 20, 3))
    with pytest.raises(ValueError, match=r"reference has \(20, 30, 3\), candidate \(1, 20, 30, 3\)"):
        compare(torch.zeros(20, 30, 3), torch.zeros(1, 20, 30, 3))
    with pytest.raises(ValueError, match=r"\(0, 20, 30, 3\)"):
        compare(torch.zeros(0, 20, 30, 3), torch.zeros(0, 20, 30, 3))


def test_alpha_and_grey(compare):
    """What cannot be seen does not count, what can does; grey is a colour."""
    colours = pictures(2)
    opaque = torch.cat([colours, torch.ones(2, 40, 56, 1)], -1)
    assert compare(colours, opaque)[0] == math.inf
    clear = torch.cat([colours, torch.zeros(2, 40, 56, 1)], -1)
    assert compare(torch.cat([1 - colours, torch.zeros(2, 40, 56, 1)], -1), clear)[0] == math.inf
    assert compare(opaque, clear)[0] < 30, "one is there, the other is not"
    grey = pictures(2, channels=1)
    assert compare(grey, grey.expand(-1, -1, -1, 3))[0] == math.inf


def test_pixels_count_as_they_are_shown(compare):
    """A NaN picture is shown black; it must neither pass for perfect nor make the report unreadable."""
    reference = pictures(1)
    broken = torch.full_like(reference, math.nan)
    assert compare(reference, broken)[0] == pytest.approx(compare(reference, torch.zeros_like(reference))[0])
    assert compare(torch.ones(1, 16, 16, 3), torch.full((1, 16, 16, 3), 7.0))[0] == math.inf
    half = noisy(reference, 0.1).half()
    assert compare(reference, half)[0] == pytest.approx(compare(reference, half.float())[0])


@pytest.mark.parametrize("amount, times", [(0.0005, 256), (0.004, 64), (0.02, 8), (0.3, 1)])
def test_the_difference_is_enlarged_as_its_label_says(compare, amount, times):
    """The factor: as large as the differences allow, a power of two, the same for all frames."""
    reference = pictures(2, 64, 160) * 0.5 + 0.25
    candidate = reference + amount * torch.randn(reference.shape, generator=torch.Generator().manual_seed(5))
    candidate[1] = reference[1] + (candidate[1] - reference[1]) / 2
    _, _, difference, report = compare(reference, candidate)
    assert report["difference_times"] == times
    expected = ((reference - candidate.clamp(0, 1)).abs() * times).clamp(0, 1)
    assert torch.allclose(difference[:, 32:], expected[:, 32:], atol=1e-4), "below the label"
    assert (difference[:, :32] - expected[:, :32]).abs().amax((1, 2, 3)).min() > 0.3, "every frame has its label"


@pytest.mark.parametrize("width, said", [(320, "difference x 8, "), (90, "difference x 8"), (40, "x 8"), (8, None)])
def test_the_label_fits(comfy, compare, monkeypatch, width, said):
    """The longest that fits is written; a picture too small for any is left as it is."""
    pictures_module = comfy.module("nodes.pictures")
    written = []

    class Draw(pictures_module.ImageDraw.ImageDraw):
        def text(self, xy, text, *rest):
            written.append((text, self.textbbox(xy, text, rest[1]), self.im.size))
            super().text(xy, text, *rest)

    monkeypatch.setattr(pictures_module.ImageDraw, "Draw", Draw)
    reference = torch.full((1, 48, width, 3), 0.5)
    compare(reference, reference + 0.02 * torch.randn(reference.shape, generator=torch.Generator().manual_seed(5)))
    if said is None:
        assert written == []
    else:
        ((text, (_, _, right, bottom), size),) = written
        assert text.startswith(said) and text.endswith("dB") is said.endswith(", ")
        assert right <= size[0] <= width and bottom <= size[1] <= 24


def test_a_long_video_is_compared_frame_by_frame(comfy):
    """Memory: what is needed beside the inputs and the difference does not grow with the number of frames."""
    from memory import Allocations

    def beside(frames):
        reference = torch.rand(frames, 96, 96, 3)
        candidate = reference * 0.9
        with Allocations() as allocations:
            difference = comfy.node("EasyCacheCompare", reference, candidate)[2]
        return allocations.peak - difference.numel() * 4

    assert beside(24) < 1.5 * beside(3)
