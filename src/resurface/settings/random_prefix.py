"""Settings of random prefixes."""

from pydantic import Field

from resurface.settings.base import PositiveInt, Settings


class RandomPrefixSettings(Settings):
    """Which prefixes are drawn."""

    count: PositiveInt = Field(10, description="prefixes, each a variant")
    length: PositiveInt = Field(32, description="tokens of a prefix")
    printable: bool = Field(False, description="whether prefixes consist of printable tokens only")
