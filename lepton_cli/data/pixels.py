"""Image operations on arrays stored channels-last: resize, centre crop, channel order, layout.

Arrays are `[n, height, width]` (gray) or `[n, height, width, channels]`.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from lepton_cli.data.dataset import Array
from lepton_cli.errors import DataError, MissingExtraError

#: No resized image may have more pixels than this: a typing error must not fill the memory.
MAX_PIXELS = 1 << 26


def require_images(array: Array, option: str) -> None:
    """Raise DataError unless `array` holds images channels-last, as the operation `option` needs."""
    if array.ndim not in (3, 4) or array.dtype.kind not in "biuf":
        raise DataError(
            "data.not-images",
            f"`{option}` needs images (height x width or height x width x channels), the samples are "
            f"{'x'.join(str(size) for size in array.shape[1:]) or 'single values'} {array.dtype}",
            hint=f"take `{option}` out, or name the array with the images in `inputs`",
            option=("preprocess", option),
        )


def resize(array: Array, size: int | tuple[int | str, int | str], interpolation: str) -> Array:
    """Resize with Pillow. `size` is (height, width), `auto` for one that keeps the aspect, or the new short side.

    Colour uint8 images are resized as uint8, as Pillow does it with an opened image; gray and float arrays in
    float32 without rounding (Pillow's mode `F`).
    """
    require_images(array, "resize")
    height, width = _target(array.shape[1], array.shape[2], size)
    if array.shape[1:3] == (height, width):
        return array
    if height * width > MAX_PIXELS:
        raise DataError(
            "data.too-large", f"`resize` to {height}x{width} makes images too large", option=("preprocess", "resize")
        )
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingExtraError("images", "pillow", "resizing") from error
    method = Image.Resampling[interpolation.upper()]

    def one(plane: Array) -> Array:
        return np.asarray(Image.fromarray(plane).resize((width, height), method))

    if array.dtype == np.uint8 and array.ndim == 4 and array.shape[3] in (3, 4):
        return np.stack([one(image) for image in array])
    planes = array[..., None] if array.ndim == 3 else array
    planes = np.ascontiguousarray(np.moveaxis(planes, 3, 1), dtype=np.float32)
    resized = np.stack([np.stack([one(plane) for plane in image], axis=-1) for image in planes])
    return resized[..., 0] if array.ndim == 3 else resized


def _target(height: int, width: int, size: int | tuple[int | str, int | str]) -> tuple[int, int]:
    if isinstance(size, int):
        size = (size, "auto") if height <= width else ("auto", size)
    new_height, new_width = size
    if isinstance(new_height, int):
        return new_height, new_width if isinstance(new_width, int) else max(1, int(new_height * width / height))
    assert isinstance(new_width, int)
    return max(1, int(new_width * height / width)), new_width


def centre_crop(array: Array, size: int | tuple[int, int]) -> Array:
    """The middle (height, width) of each image. Raises DataError when the images are smaller."""
    require_images(array, "crop")
    height, width = (size, size) if isinstance(size, int) else size
    if array.shape[1] < height or array.shape[2] < width:
        raise DataError(
            "data.crop",
            f"`crop` to {height}x{width} is larger than the images, {array.shape[1]}x{array.shape[2]}",
            hint=f"add `resize: {max(height, width)}`, or crop less",
            option=("preprocess", "crop"),
        )
    top, left = round((array.shape[1] - height) / 2), round((array.shape[2] - width) / 2)
    return array[:, top : top + height, left : left + width]


def reorder(array: Array, channels: Literal["rgb", "bgr", "gray"]) -> Array:
    """From stored RGB or gray to the model's channels; gray becomes three equal channels where colour is wanted."""
    require_images(array, "channels")
    gray = array.ndim == 3 or array.shape[3] == 1
    if not gray and array.shape[3] != 3:
        raise DataError(
            "data.channels",
            f"`channels: {channels}` needs images with 1 or 3 channels, these have {array.shape[3]}",
            hint="images are stored channels-last (height x width x channels)",
            option=("preprocess", "channels"),
        )
    if channels == "gray":
        return array if gray else _luminance(array)
    if gray:
        return np.repeat(array[..., None] if array.ndim == 3 else array, 3, axis=3)
    return array[..., ::-1] if channels == "bgr" else array


def _luminance(array: Array) -> Array:
    """ITU-R 601 luma, for uint8 rounded exactly as Pillow's `convert("L")`."""
    if array.dtype == np.uint8:
        weighted = array.astype(np.uint32) @ np.array([19595, 38470, 7471], np.uint32)
        return ((weighted + 0x8000) >> 16).astype(np.uint8)
    weights = np.array([0.299, 0.587, 0.114], np.result_type(array.dtype, np.float32))
    return np.asarray(array @ weights)


def to_layout(array: Array, layout: Literal["nchw", "nhwc"]) -> Array:
    """Channels-last to the model's layout; gray images get a channel axis."""
    require_images(array, "layout")
    if array.ndim == 3:
        return array[:, None] if layout == "nchw" else array[..., None]
    return np.moveaxis(array, 3, 1) if layout == "nchw" else array
