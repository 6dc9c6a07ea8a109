"""The attack that does nothing: the model as it is."""

from resurface.artifacts import publish_folder
from resurface.attacks.target import Target
from resurface.interventions import Variant, write_variants
from resurface.settings.none import NoneSettings


def attack(target: Target, settings: NoneSettings, part: str) -> None:
    """Leave one variant without any change."""
    with publish_folder(target.output) as folder:
        write_variants(folder, [Variant(variant="none")])
