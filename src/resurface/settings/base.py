"""What all settings share: they are strict, frozen and refuse keys that they do not know."""

from typing import Annotated, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

Item = TypeVar("Item")
Key = TypeVar("Key", bound=str)
Value = TypeVar("Value")


class Settings(BaseModel):
    """Strict settings: no coercion (`"1e-3"` is text, `true` is no number), no NaN or infinity, no unknown key."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False, validate_default=True)


def refuse_repeats(values: list[Item]) -> list[Item]:
    """The list as it is, or a `ValueError` if it says something twice; numbers count as they stand in names."""
    written = {f"{value:g}" if isinstance(value, float) else value for value in values}
    if len(written) != len(values):
        raise ValueError(f"found {values}; each may be named once")
    return values


def sort_names(values: dict[Key, Value]) -> dict[Key, Value]:
    """The mapping in the order of its names: a manifest knows no other, and commands made from one must be those of the configuration."""
    return dict(sorted(values.items()))


# What libraries count with: 31 bits, and 32 for seeds. A larger number would end as an overflow in the middle of a job.
LARGEST = 2**31 - 1
LARGEST_SEED = 2**32 - 1

Count = Annotated[int, Field(ge=0, le=LARGEST)]
PositiveInt = Annotated[int, Field(ge=1, le=LARGEST)]
Seed = Annotated[int, Field(ge=0, le=LARGEST_SEED)]
PositiveFloat = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Block = Count
# A name that stands in paths and at the start of names of variants, which have 80 characters at most.
Slug = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_]*$", max_length=40)]
# Jobs and files are named after what such lists hold: a repeated entry does its work twice, and an empty list mostly nothing.
DistinctOrEmptyList = Annotated[
    list[Item], Field(json_schema_extra={"uniqueItems": True}), AfterValidator(refuse_repeats)
]
DistinctList = Annotated[
    list[Item], Field(min_length=1, json_schema_extra={"uniqueItems": True}), AfterValidator(refuse_repeats)
]
# A mapping whose names are the user's.
Named = Annotated[dict[Key, Value], AfterValidator(sort_names)]
