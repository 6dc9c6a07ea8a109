"""The one list of methods and attacks. A new one needs its module, its settings class and a line in here."""

from dataclasses import dataclass
from importlib import import_module

from resurface.settings.base import Settings


@dataclass(frozen=True)
class Entry:
    """Where a method or an attack lives.

    Attributes:
        module: the module that runs it (heavy; imported by its jobs only).
        settings: its settings class, `module:class` (light).
        parts: the setting whose keys split the attack into one job each, or None for a single job.
        changes_prompts: whether the attack works through the prompt, so that perplexity under it is measured.
        transfers: whether what it found on one method's model is also scored on all other models.
    """

    module: str
    settings: str
    parts: str | None = None
    changes_prompts: bool = False
    transfers: bool = False

    def settings_class(self) -> type[Settings]:
        """Import the settings class."""
        module, name = self.settings.split(":")
        found = getattr(import_module(module), name)
        assert issubclass(found, Settings)
        return found


METHODS = {
    "rmu": Entry("resurface.unlearning.rmu", "resurface.settings.rmu:RMUSettings"),
    "npo": Entry("resurface.unlearning.npo", "resurface.settings.npo:NPOSettings"),
    "dpo": Entry("resurface.unlearning.dpo", "resurface.settings.dpo:DPOSettings"),
}

ATTACKS = {
    "none": Entry("resurface.attacks.none", "resurface.settings.none:NoneSettings"),
    "finetuning": Entry(
        "resurface.attacks.finetuning", "resurface.settings.finetuning:FinetuningSettings", parts="datasets"
    ),
    "orthogonalization": Entry(
        "resurface.attacks.orthogonalization", "resurface.settings.orthogonalization:OrthogonalizationSettings"
    ),
    "pruning": Entry("resurface.attacks.pruning", "resurface.settings.pruning:PruningSettings", parts="datasets"),
    "perturbation": Entry(
        "resurface.attacks.perturbation", "resurface.settings.perturbation:PerturbationSettings", changes_prompts=True
    ),
    "random_prefix": Entry("resurface.attacks.random_prefix", "resurface.settings.random_prefix:RandomPrefixSettings"),
    "gcg": Entry("resurface.attacks.gcg", "resurface.settings.gcg:GCGSettings", changes_prompts=True),
    "enhanced_gcg": Entry(
        "resurface.attacks.enhanced_gcg",
        "resurface.settings.enhanced_gcg:EnhancedGCGSettings",
        parts="searches",
        changes_prompts=True,
        transfers=True,
    ),
    "logit_lens": Entry("resurface.attacks.logit_lens", "resurface.settings.logit_lens:LogitLensSettings"),
}
