"""Settings of the attack that does nothing."""

from resurface.settings.base import Settings


class NoneSettings(Settings):
    """Nothing to set."""
