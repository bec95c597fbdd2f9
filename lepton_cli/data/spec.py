"""The `data:` part of a recipe: where samples come from and how they become model inputs. Light: no numpy here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from lepton_cli import units
from lepton_cli.values import Number, Percent, Strict

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
    label_type: Literal["auto", "text"] = Field(
        default="auto", description="`text`: labels are text, also those that look like numbers (`0012`)"
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
    groups: Annotated[
        tuple[str, ...],
        BeforeValidator(
            lambda value: (value,) if isinstance(value, str) else value,
            json_schema_input_type=str | tuple[str, ...],
        ),
    ] = Field(default=(), description="Of evaluation data: columns or arrays whose values are told apart in the report")


def _range(low_high: tuple[float, float] | None) -> tuple[float, float] | None:
    if low_high is not None and not 0 < low_high[0] <= low_high[1]:
        raise ValueError("write the lower limit first, both above 0")
    return low_high


def _shares(low_high: tuple[float, float] | None) -> tuple[float, float] | None:
    if low_high is not None and low_high[1] > 1:
        raise ValueError("a window is at most the whole image: shares of its area from 0 to 1")
    return low_high


def _not_all(share: float) -> float:
    if share >= 1:
        raise ValueError("less than `100 %`, so that something is left")
    return share


def _some(share: float) -> float:
    if share == 0:
        raise ValueError("0 changes nothing: leave it out")
    return share


#: Two numbers above 0, the lower one first.
LowHigh = Annotated[tuple[Number, Number], AfterValidator(_range)]
#: A share of samples, tokens or values, which leaves some.
SharePart = Annotated[Percent, AfterValidator(_not_all)]
#: By how much a factor may differ from 1.
Factor = Annotated[Number, Field(ge=0, le=1)]


class RandomWindow(Strict):
    """`crop` of training data: a window of every image at a random place."""

    pad: int | None = Field(
        default=None,
        ge=1,
        le=1 << 16,
        description="Zeros on all sides, out of which a window of the image's size is cut",
    )
    random: Annotated[LowHigh | None, AfterValidator(_shares)] = Field(
        default=None, description="Share of the area that is cut out, from and to; resized to what the image had"
    )
    aspect: LowHigh = Field(
        default=(3 / 4, 4 / 3), description="With `random`: width by height of the window, from and to"
    )

    @model_validator(mode="after")
    def _one_way(self) -> RandomWindow:
        if (self.pad is None) == (self.random is None):
            raise ValueError("give either `pad` or `random`")
        if self.pad is not None and "aspect" in self.model_fields_set:
            raise ValueError("`aspect` goes with `random`")
        return self

    @model_serializer(mode="wrap")
    def _only_its_way(self, plain: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {"pad": self.pad} if self.pad is not None else _given(plain(self))


class ColourChange(Strict):
    """Factors from 1 - x to 1 + x, drawn for every image: of its brightness, then its contrast, then its saturation."""

    brightness: Factor = Field(default=0.0, description="Of every value")
    contrast: Factor = Field(default=0.0, description="Of the distance from the image's mean grey")
    saturation: Factor = Field(default=0.0, description="Of the distance from each pixel's grey")

    @model_validator(mode="after")
    def _some(self) -> ColourChange:
        if not (self.brightness or self.contrast or self.saturation):
            raise ValueError("give `brightness`, `contrast` or `saturation`, above 0")
        return self


class DroppedTokens(Strict):
    """Tokens replaced by another one, drawn for every position but the first one and what the attention mask hides."""

    share: Annotated[SharePart, AfterValidator(_some)] = Field(description="Of the tokens, on average")
    token: int = Field(default=0, ge=0, description="What stands in their place, such as the id of `[MASK]`")


class Augmentation(Strict):
    """A random change to training samples as they are stored. Exactly one of the fields below is given."""

    flip: Literal["horizontal", "vertical", "both"] | None = Field(
        default=None, description="Images are mirrored with probability 1/2, in `both` directions independently"
    )
    crop: RandomWindow | None = Field(default=None, description="Images: `{pad: 4}` or `{random: [0.25, 1]}`")
    colour: ColourChange | None = Field(
        default=None, description="Images: `{brightness: 0.2, contrast: 0.2, saturation: 0.2}`"
    )
    noise: Annotated[Number, Field(gt=0, le=10)] | None = Field(
        default=None,
        description="Gaussian noise, in standard deviations of the column (of the channel for images) in the batch",
    )
    shift: Annotated[SharePart, AfterValidator(_some)] | None = Field(
        default=None,
        description="Sequences move along their last axis by up to this share of it; zeros follow",
    )
    drop_tokens: (
        Annotated[
            DroppedTokens,
            BeforeValidator(
                lambda value: value if isinstance(value, (Mapping, DroppedTokens)) else {"share": value},
                json_schema_input_type=DroppedTokens | Percent,
            ),
        ]
        | None
    ) = Field(default=None, description="Token ids: a share, or `{share: 10 %, token: 103}`")
    mixup: Annotated[Number, Field(ge=0.01, le=10)] | None = Field(
        default=None, description="a of Beta(a, a): samples and labels are mixed with those of another sample"
    )

    @model_validator(mode="after")
    def _one(self) -> Augmentation:
        given = [name for name in type(self).model_fields if getattr(self, name) is not None]
        if len(given) != 1:
            said = f", not {' and '.join(given)}: each is an item of its own" if given else ""
            raise ValueError(f"give exactly one of {', '.join(type(self).model_fields)}{said}")
        return self

    @model_serializer(mode="wrap")
    def _only_it(self, plain: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return _given(plain(self))

    @property
    def name(self) -> str:
        """Which of the fields is given."""
        return next(name for name in type(self).model_fields if getattr(self, name) is not None)


def _given(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def _mixed_once(augment: tuple[Augmentation, ...]) -> tuple[Augmentation, ...]:
    if sum(one.mixup is not None for one in augment) > 1:
        raise ValueError("`mixup` twice: labels are mixed with those of one other sample")
    return augment


class TrainingSpec(DataSpec):
    """The only samples that a training step sees."""

    holdout: SharePart = Field(
        default=units.Share(0.05),
        description="Kept apart to judge the training by, chosen by a hash of each sample; `0 %`: none",
    )
    augment: Annotated[tuple[Augmentation, ...], AfterValidator(_mixed_once)] = Field(
        default=(), description="Random changes in order, on stored samples before `preprocess`"
    )


def _no_groups(spec: DataSpec | None) -> DataSpec | None:
    if spec is not None and spec.groups:
        raise ValueError("`groups` belong to the evaluation data: they tell accuracy apart")
    return spec


class DataSection(Strict):
    """Calibration data needs no labels; evaluation data is what accuracy is measured on; training data trains."""

    calibration: Annotated[DataSpec | None, AfterValidator(_no_groups)] = None
    evaluation: DataSpec | None = None
    training: Annotated[TrainingSpec | None, AfterValidator(_no_groups)] = None
