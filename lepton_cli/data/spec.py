"""The `data:` part of a recipe: where samples come from and how they become model inputs. Light: no numpy here."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from lepton_cli.values import Number, Strict

Numbers = Annotated[
    tuple[Number, ...],
    BeforeValidator(
        lambda value: value if isinstance(value, (list, tuple)) else (value,),
        json_schema_input_type=Number | tuple[Number, ...],
    ),
]


def _no_zero(values: tuple[float, ...] | None) -> tuple[float, ...] | None:
    if values is not None and 0.0 in values:
        raise ValueError("a deviation of 0 would divide by zero")
    return values


def _one_given(size: tuple[int | str, int | str] | int | None) -> tuple[int | str, int | str] | int | None:
    if size == ("auto", "auto"):
        raise ValueError("one side is a number: the other one follows")
    return size


#: A width or height.
Pixels = Annotated[int, Field(ge=1, le=1 << 16)]
#: One that may follow from the other, as the picture has them.
PixelsOrAuto = Pixels | Literal["auto"]
TypeName = Literal[
    "float32", "float64", "float16", "bfloat16",
    "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "bool", "str",
]  # fmt: skip


class Preprocess(Strict):
    """From stored sample to model input. Applied in the order of the fields below."""

    fill_missing: Number | Literal["mean", "median", "keep"] | None = Field(
        default=None,
        description="Replaces missing values (NaN, empty cells) before anything else; `keep`: the model does it itself",
    )
    resize: Annotated[Pixels | tuple[PixelsOrAuto, PixelsOrAuto] | None, AfterValidator(_one_given)] = Field(
        default=None,
        description="[height, width], `auto` for one that keeps the aspect; or one number for the short side",
    )
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"] = "bilinear"
    crop: Pixels | tuple[Pixels, Pixels] | None = Field(
        default=None, description="Centre crop [height, width] or a square"
    )
    channels: Literal["rgb", "bgr", "gray"] | None = Field(
        default=None, description="Channel order the model wants (sources are RGB or gray)"
    )
    scale: Numbers | None = Field(default=None, description="Multiplier, a number or one per channel: `1/255`")
    mean: Numbers | None = Field(
        default=None, description="Subtracted after `scale`; per channel in the model's order, as `channels` sets it"
    )
    std: Annotated[Numbers | None, AfterValidator(_no_zero)] = Field(
        default=None, description="Divided by after `mean`; per channel like `mean`"
    )
    standardise: bool = Field(
        default=False, description="Zero mean and unit variance per column, from the calibration data"
    )
    layout: Literal["nchw", "nhwc"] | None = Field(
        default=None, description="Where the model has its channels; images are stored channels-last"
    )
    dtype: TypeName | None = Field(default=None, description="Cast to this type; default: the model input's type")
    pad: int | None = Field(
        default=None, ge=1, le=1_000_000, description="Pad or cut the last axis (token rows) to this length"
    )
    pad_value: Number = 0.0
    shape: tuple[int, ...] | None = Field(default=None, description="Shape of one sample, at the very end")


class DataSpec(Strict):
    """A data set: an `.npz` file, an image folder, a `.csv`/`.jsonl`/`.parquet` table."""

    path: str = Field(description="File or folder, relative to the recipe")
    inputs: dict[str, str | tuple[str, ...]] | None = Field(
        default=None,
        description="Model input -> array or column(s); default: the same names, or the only array for the only input",
    )
    labels: str | dict[str, str] | None = Field(
        default=None, description="Array or column with labels; for image folders: a CSV file, default the folder names"
    )
    samples: int | None = Field(default=None, ge=1, description="Use only so many samples, spread evenly")
    skip: int = Field(default=0, ge=0, description="Leave out so many samples at the start")
    first: int | None = Field(default=None, ge=1, description="Use only the first so many samples (after `skip`)")
    label_offset: int = Field(
        default=0,
        ge=-1_000_000,
        le=1_000_000,
        description="Added to every label: 1 for models whose class 0 is `background`",
    )
    batch: int = Field(
        default=32, ge=1, description="Samples per batch when reading; 1 allows samples of different shapes"
    )
    preprocess: Preprocess = Preprocess()
    preprocess_inputs: dict[str, Preprocess] = Field(
        default={}, description="Preprocessing of single inputs, instead of `preprocess`"
    )
    loader: str | None = Field(default=None, description="`file.py:function` yielding batches (needs --allow-code)")


class DataSection(Strict):
    """Calibration data needs no labels; evaluation data is what accuracy is measured on."""

    calibration: DataSpec | None = None
    evaluation: DataSpec | None = None
