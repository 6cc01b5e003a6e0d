"""From the pixels of an image to what a network was trained on."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.nn import functional as F

from explorer.errors import DataError, unknown

INTERPOLATIONS = ("bilinear", "bicubic")


@dataclass(frozen=True)
class Preprocess:
    """Resize the shorter side, cut the centre out, choose the channels, normalise: in that order.

    Every step that is not named is left out, except that uint8 pixels are always divided by 255.
    ``mean`` and ``std`` hold one number, or one for each channel.  ``channels`` is 1 (colour becomes grey
    by ITU-R BT.601, 0.299 R + 0.587 G + 0.114 B) or 3 (grey is repeated).  Resizing is antialiased and
    agrees with Pillow's to one grey level.  Raises DataError for values that make no sense.

    >>> step = Preprocess(mean=(0.5,), std=(0.25,))
    >>> step.apply(torch.tensor([[[[0, 255]]]], dtype=torch.uint8))
    tensor([[[[-2.,  2.]]]])
    """

    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    resize: int | None = None
    crop: int | None = None
    channels: int | None = None
    interpolation: str = "bilinear"

    def __post_init__(self) -> None:
        for name in ("mean", "std"):
            values = getattr(self, name)
            numbers = (values,) if isinstance(values, (int, float)) else values
            try:
                numbers = tuple(float(value) for value in numbers)
            except (TypeError, ValueError) as problem:
                raise DataError(f"{name} is {values!r}; give 1 or 3 numbers.") from problem
            if len(numbers) not in (0, 1, 3) or not all(math.isfinite(value) for value in numbers):
                raise DataError(f"{name} is {values!r}; give 1 or 3 finite numbers.")
            object.__setattr__(self, name, numbers)
        if any(value <= 0 for value in self.std):
            raise DataError(f"std is {self.std}; every value must be greater than 0.")
        for name in ("resize", "crop"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise DataError(f"{name} is {value!r}; give a number of pixels, 1 or more.")
        if self.channels not in (None, 1, 3):
            raise DataError(f"channels is {self.channels!r}; give 1 (grey) or 3 (colour).")
        if self.interpolation not in INTERPOLATIONS:
            raise DataError(unknown("interpolation", self.interpolation, INTERPOLATIONS))

    @classmethod
    def parse(cls, text: str) -> Preprocess:
        """Read ``name=value`` words, as on the command line; ``str`` writes them again.

        >>> Preprocess.parse("mean=0.5 std=0.25 resize=256 crop=224").crop
        224
        """
        found: dict[str, tuple[float, ...] | int | str] = {}
        for word in text.split():
            name, equals, value = word.partition("=")
            if not equals:
                raise DataError(f"{word!r} is no preprocessing step; write it as name=value.")
            if name not in (known := [field.name for field in fields(cls)]):
                raise DataError(unknown("preprocessing step", name, known))
            if name in found:
                raise DataError(f"The preprocessing step {name!r} is given twice.")
            try:
                if name in ("mean", "std"):
                    found[name] = tuple(float(number) for number in value.split(","))
                else:
                    found[name] = value if name == "interpolation" else int(value)
            except ValueError as problem:
                shape = "numbers such as 0.485,0.456,0.406" if name in ("mean", "std") else "a whole number"
                raise DataError(f"{word!r} is no preprocessing step; {name} takes {shape}.") from problem
        return cls(**found)  # type: ignore[arg-type]

    def __str__(self) -> str:
        words = []
        for field in fields(self):
            value = getattr(self, field.name)
            if value != field.default:
                text = ",".join(repr(number) for number in value) if isinstance(value, tuple) else str(value)
                words.append(f"{field.name}={text}")
        return " ".join(words)

    def steps(self, pixels: bool = True) -> tuple[str, ...]:
        """What is done to an image, in words and in order; ``pixels`` of 0 to 255, or floats as they are.

        >>> Preprocess(mean=(0.5,), std=(0.25,), crop=28).steps()
        ('cut out the middle 28 x 28 pixels', 'divide by 255', 'subtract 0.5', 'divide by 0.25')
        """
        found = []
        if self.resize is not None:
            found.append(
                f"resize the shorter side to {self.resize} pixels ({self.interpolation}, antialiased)"
            )
        if self.crop is not None:
            found.append(f"cut out the middle {self.crop} x {self.crop} pixels")
        if pixels:
            found.append("divide by 255")
        if self.channels is not None:
            found.append(
                "colour to one channel of grey" if self.channels == 1 else "grey to three equal channels"
            )
        for name, word in (("mean", "subtract"), ("std", "divide by")):
            values = getattr(self, name)
            if values:
                found.append(f"{word} {', '.join(f'{value:g}' for value in values)}")
        return tuple(found)

    def apply(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W), uint8 or float -> float32 (N, C', H', W').

        Floats keep their own range.  Raises DataError for another rank or dtype, for an image smaller than
        the crop, and where the numbers in ``mean`` or ``std`` are not as many as the channels.
        """
        if images.ndim != 4 or not (images.dtype == torch.uint8 or images.is_floating_point()):
            raise DataError(
                f"Images of shape {tuple(images.shape)} and type {_dtype(images)} cannot be preprocessed; "
                "give (N, C, H, W), uint8 or float."
            )
        images = self._cropped(self._resized(images))
        # A copy, of which what follows is worked out in place: fresh memory costs more than arithmetic.
        x = images.to(torch.float32, copy=True)
        if images.dtype == torch.uint8:
            x.div_(255)
        x = self._with_channels(x)
        if self.mean:
            x.sub_(self._per_channel("mean", x))
        if self.std:
            x.div_(self._per_channel("std", x))
        return x

    def _resized(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        short, long = min(height, width), max(height, width)
        if self.resize is None or short == self.resize:
            return images
        other = max(1, int(self.resize * long / short))
        size = (self.resize, other) if height <= width else (other, self.resize)
        return F.interpolate(images, size=size, mode=self.interpolation, antialias=True, align_corners=False)

    def _cropped(self, images: Tensor) -> Tensor:
        if self.crop is None:
            return images
        height, width = images.shape[-2:]
        if min(height, width) < self.crop:
            raise DataError(
                f"An image of {height} x {width} pixels is smaller than crop={self.crop}; "
                f"add resize={self.crop}."
            )
        # round, not floor: the same pixels as torchvision's CenterCrop
        top, left = round((height - self.crop) / 2.0), round((width - self.crop) / 2.0)
        return images[..., top : top + self.crop, left : left + self.crop]

    def _with_channels(self, x: Tensor) -> Tensor:
        count = x.shape[1]
        if self.channels in (None, count):
            return x
        if (count, self.channels) == (1, 3):
            return x.expand(-1, 3, -1, -1).contiguous()
        if (count, self.channels) == (3, 1):
            return (x * x.new_tensor((0.299, 0.587, 0.114)).reshape(1, 3, 1, 1)).sum(1, keepdim=True)
        raise DataError(f"Images with {count} channels cannot be given {self.channels}; 1 or 3 are needed.")

    def _per_channel(self, name: str, x: Tensor) -> Tensor:
        values: tuple[float, ...] = getattr(self, name)
        if len(values) not in (1, x.shape[1]):
            raise DataError(
                f"{name} has {len(values)} numbers and the images {x.shape[1]} channels; "
                f"give as many, or add channels={len(values)}."
            )
        return x.new_tensor(values).reshape(1, -1, 1, 1)


def _dtype(x: Tensor) -> str:
    return str(x.dtype).removeprefix("torch.")
