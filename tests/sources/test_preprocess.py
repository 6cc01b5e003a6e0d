"""Laws of preprocessing, and its two oracles: Pillow's resize and torchvision's own transform."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from explorer.errors import DataError
from explorer.sources import Preprocess

IMAGENET = Preprocess(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), resize=40, crop=32, channels=3)

numbers = st.floats(-10, 10, allow_nan=False)
scales = st.floats(1e-3, 10, allow_nan=False)
sizes = st.none() | st.integers(1, 4000)
steps = st.builds(
    Preprocess,
    mean=st.just(()) | st.tuples(numbers) | st.tuples(numbers, numbers, numbers),
    std=st.just(()) | st.tuples(scales) | st.tuples(scales, scales, scales),
    resize=sizes,
    crop=sizes,
    channels=st.sampled_from((None, 1, 3)),
    interpolation=st.sampled_from(("bilinear", "bicubic")),
)


def noise(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@given(steps)
def test_what_is_written_is_read_again(step: Preprocess) -> None:
    assert Preprocess.parse(str(step)) == step


def test_the_line_of_the_help_is_understood() -> None:
    text = "mean=0.485,0.456,0.406 std=0.229,0.224,0.225 resize=256 crop=224"
    assert Preprocess.parse(text) == Preprocess((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 256, 224)
    assert Preprocess.parse("") == Preprocess()


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("resise=256", "Did you mean 'resize'"),
        ("resize", "name=value"),
        ("resize=big", "whole number"),
        ("resize=0", "1 or more"),
        ("crop=-3", "1 or more"),
        ("mean=a,b,c", "numbers such as"),
        ("mean=1,2", "1 or 3"),
        ("mean=nan", "finite"),
        ("std=0", "greater than 0"),
        ("channels=2", "grey"),
        ("interpolation=bilinea", "Did you mean 'bilinear'"),
        ("crop=3 crop=4", "twice"),
    ],
)
def test_a_step_that_makes_no_sense_is_one_sentence(text: str, part: str) -> None:
    with pytest.raises(DataError, match=part) as caught:
        Preprocess.parse(text)
    assert "\n" not in str(caught.value)


def test_without_steps_bytes_are_scaled_and_floats_untouched() -> None:
    images = noise(2, 3, 4, 5)
    assert torch.equal(Preprocess().apply(images), images.float() / 255)
    floats = torch.randn(2, 7, 4, 5)
    assert torch.equal(Preprocess().apply(floats), floats)


@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 40))
@settings(max_examples=40)
def test_resizing_sets_the_shorter_side(height: int, width: int, size: int) -> None:
    shape = Preprocess(resize=size).apply(noise(1, 1, height, width)).shape
    assert min(shape[2:]) == size
    assert (shape[2] <= shape[3]) == (height <= width) or shape[2] == shape[3]


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_resizing_is_pillows_to_one_level(mode: str) -> None:
    images = noise(1, 3, 37, 61)
    ours = (Preprocess(resize=16, interpolation=mode).apply(images)[0] * 255).round()
    picture = Image.fromarray(images[0].permute(1, 2, 0).numpy())
    theirs = np.asarray(picture.resize((26, 16), Image.Resampling[mode.upper()]))
    assert (ours.permute(1, 2, 0) - torch.from_numpy(theirs.copy()).float()).abs().max() <= 1


@pytest.mark.parametrize("shape", [(50, 70), (70, 51), (41, 41)])
def test_a_torchvision_preset_is_matched(shape: tuple[int, int]) -> None:
    from explorer.sources.vision import torchvision

    images = noise(2, 3, *shape)
    preset = torchvision.transforms._presets.ImageClassification(crop_size=32, resize_size=40)
    torch.testing.assert_close(IMAGENET.apply(images), preset(images), rtol=0, atol=1.01 / 255 / 0.224)
    same_size = Preprocess(IMAGENET.mean, IMAGENET.std, crop=32)
    preset = torchvision.transforms._presets.ImageClassification(crop_size=32, resize_size=min(shape))
    torch.testing.assert_close(same_size.apply(images), preset(images), rtol=0, atol=1e-6)


def test_grey_is_repeated_and_colour_weighed() -> None:
    grey = noise(2, 1, 4, 4)
    colour = Preprocess(channels=3).apply(grey)
    assert colour.shape == (2, 3, 4, 4)
    torch.testing.assert_close(Preprocess(channels=1).apply(colour), grey / 255)
    pure = torch.eye(3).reshape(3, 3, 1, 1)
    assert Preprocess(channels=1).apply(pure).flatten().tolist() == pytest.approx([0.299, 0.587, 0.114])


def test_an_image_does_not_depend_on_its_batch() -> None:
    images = noise(5, 3, 50, 60)
    whole = IMAGENET.apply(images)
    assert torch.equal(whole, torch.cat([IMAGENET.apply(image[None]) for image in images]))
    assert whole.dtype == torch.float32


@pytest.mark.parametrize(
    ("step", "images", "part"),
    [
        (Preprocess(crop=8), torch.zeros(1, 1, 7, 9), "add resize=8"),
        (Preprocess(mean=(0.1, 0.2, 0.3)), torch.zeros(1, 1, 2, 2), "add channels=3"),
        (Preprocess(channels=1), torch.zeros(1, 4, 2, 2), "1 or 3"),
        (Preprocess(), torch.zeros(2, 2), r"\(N, C, H, W\)"),
        (Preprocess(), torch.zeros(1, 1, 2, 2, dtype=torch.int64), "uint8 or float"),
    ],
)
def test_images_that_do_not_fit_are_one_sentence(step: Preprocess, images: torch.Tensor, part: str) -> None:
    with pytest.raises(DataError, match=part):
        step.apply(images)
