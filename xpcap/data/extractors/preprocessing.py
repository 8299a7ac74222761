"""Preprocessing of images for a network, and the presets of well-known networks."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy

from xpcap.errors import ConfigurationError

LARGEST = 4096  # pixels on a side
_LARGEST = 1e30  # number, near the limit of float32
_LONGEST = 8  # aspect ratio; longer images are first cropped, far outside the final crop


@dataclass(frozen=True)
class Preprocessing:
    """Resize, crop to the centre and normalize: v in 0..255 becomes `(scale v - mean) / std`.

    An invalid value raises a `ConfigurationError`.
    """

    size: int = 224  # width and height of the result in pixels
    shorter_side: int | None = 256  # before the crop; None resizes the whole image to a square
    interpolation: str = "bilinear"  # or "bicubic", with antialiasing
    channels: str = "rgb"  # or "bgr": the order, of `mean` and `std` too
    scale: float = 1 / 255
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)

    def __post_init__(self) -> None:
        sides = {"size": self.size}
        if self.shorter_side is not None:
            sides["shorter_side"] = self.shorter_side
        for name, side in sides.items():
            if type(side) is not int or not 1 <= side <= LARGEST:
                raise ConfigurationError(f"{name} is {side!r}; expected 1 to {LARGEST} pixels")
        if self.shorter_side is not None and self.shorter_side < self.size:
            raise ConfigurationError(
                f"shorter_side {self.shorter_side} is less than size {self.size}, the crop"
            )
        for name, known in (("interpolation", _INTERPOLATIONS), ("channels", _CHANNELS)):
            if getattr(self, name) not in known:
                raise ConfigurationError(
                    f"{name} is {getattr(self, name)!r}; expected {' or '.join(known)}"
                )
        if not _are_finite([self.scale]):
            raise ConfigurationError(f"scale is {self.scale!r}; expected a number")
        for name in ("mean", "std"):
            numbers = getattr(self, name)
            is_list = isinstance(numbers, (tuple, list)) and len(numbers) == 3
            if not (is_list and _are_finite(numbers)):
                raise ConfigurationError(f"{name} is {numbers!r}; expected three numbers")
            object.__setattr__(self, name, tuple(numbers))  # JSON has lists only
        if 0 in self.std:
            raise ConfigurationError("std has a 0; expected divisors")

    def __call__(self, image: Any) -> numpy.ndarray:
        """Preprocess an RGB `PIL.Image.Image`: `(3, size, size)` float32."""
        values = numpy.asarray(self._resized(image), numpy.float32)
        if self.channels == "bgr":
            values = values[..., ::-1]
        mean, std = (numpy.asarray(numbers, numpy.float32) for numbers in (self.mean, self.std))
        values = (values * numpy.float32(self.scale) - mean) / std
        return numpy.ascontiguousarray(values.transpose(2, 0, 1))

    def _resized(self, image: Any) -> Any:
        from PIL import Image

        how = Image.Resampling[self.interpolation.upper()]
        if self.shorter_side is None:
            return image.resize((self.size, self.size), how)
        short = min(image.size)
        image = _centre(image, *(min(side, _LONGEST * short) for side in image.size))
        whole = [self.shorter_side * side // short for side in image.size]
        return _centre(image.resize(whole, how), self.size, self.size)

    def changed(self, fields: Mapping[str, Any]) -> Preprocessing:
        """Return a copy with other values of some fields, or raise a `ConfigurationError`."""
        if not isinstance(fields, Mapping):
            raise ConfigurationError(
                f"preprocessing is {str(fields)[:40]!r}; expected an object with its fields"
            )
        known = [field.name for field in dataclasses.fields(self)]
        for name in fields:
            if name not in known:
                raise ConfigurationError(
                    f"preprocessing has no '{name}'; expected {', '.join(known)}"
                )
        return dataclasses.replace(self, **fields)


def _centre(image: Any, width: int, height: int) -> Any:
    left, top = round((image.width - width) / 2), round((image.height - height) / 2)
    return image.crop((left, top, left + width, top + height))


def _are_finite(numbers: Any) -> bool:
    return all(type(number) in (int, float) and abs(number) <= _LARGEST for number in numbers)


_INTERPOLATIONS = ("bilinear", "bicubic")
_CHANNELS = ("rgb", "bgr")
_IMAGENET = Preprocessing()
_CAFFE = Preprocessing(
    channels="bgr", scale=1.0, mean=(103.939, 116.779, 123.68), std=(1.0, 1.0, 1.0)
)
_CLIP = Preprocessing(
    shorter_side=224,
    interpolation="bicubic",
    mean=(0.48145466, 0.4578275, 0.40821073),
    std=(0.26862954, 0.26130258, 0.27577711),
)
PRESETS = {
    "vgg16-fc7": _IMAGENET,
    "vgg16-fc7-caffe": _CAFFE,
    "resnet101-pool": _IMAGENET,
    "clip-vit": _CLIP,
}
"""By name: torchvision's VGG-16 and ResNet-101, Caffe's VGG-16, OpenAI's CLIP (224 pixels)."""
