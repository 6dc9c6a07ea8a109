"""The one list of methods and attacks. A new one needs its module, its settings class and a line in here."""

from dataclasses import dataclass
from importlib import import_module
from typing import Any

from resurface.settings.base import Settings


@dataclass(frozen=True)
class Entry:
    """Where a method or an attack lives.

    Attributes:
        module: the module that runs it (heavy; imported by its jobs only).
        settings: its settings class, `module:class` (light).
        parts: the setting whose keys split the attack into one job each, or None for a single job.
        changes_model: whether the attack changes the model itself, so that the report says what general ability it leaves.
        changes_prompts: whether the attack works through the prompt, so that perplexity under it is measured.
        transfers: the setting of what it looks for on the model itself: what it found for that on one method's model is also
            scored on all other models. None, or a setting that holds nothing: there is nothing of the kind.
        is_sharded: whether the method can train a model that several GPUs share out.
        is_shown: whether the report shows what else is in the attack's folder: how a search went, what was pruned or rewritten.
    """

    module: str
    settings: str
    parts: str | None = None
    changes_model: bool = False
    changes_prompts: bool = False
    transfers: str | None = None
    is_shown: bool = False
    is_sharded: bool = False

    def settings_class(self) -> type[Settings]:
        """Import the settings class."""
        module, name = self.settings.split(":")
        found = getattr(import_module(module), name)
        assert issubclass(found, Settings)
        return found

    def shares_out(self, settings: Any) -> bool:
        """Whether a training with these settings trains a whole model, which several GPUs can share out."""
        return self.is_sharded and settings.adapter != "lora"


METHODS = {
    "rmu": Entry("resurface.unlearning.rmu", "resurface.settings.rmu:RMUSettings"),
    "npo": Entry("resurface.unlearning.npo", "resurface.settings.npo:NPOSettings", is_sharded=True),
    "dpo": Entry("resurface.unlearning.dpo", "resurface.settings.dpo:DPOSettings", is_sharded=True),
}

ATTACKS = {
    "none": Entry("resurface.attacks.none", "resurface.settings.none:NoneSettings"),
    "finetuning": Entry(
        "resurface.attacks.finetuning",
        "resurface.settings.finetuning:FinetuningSettings",
        parts="datasets",
        changes_model=True,
    ),
    "orthogonalization": Entry(
        "resurface.attacks.orthogonalization",
        "resurface.settings.orthogonalization:OrthogonalizationSettings",
        changes_model=True,
    ),
    "pruning": Entry(
        "resurface.attacks.pruning",
        "resurface.settings.pruning:PruningSettings",
        parts="datasets",
        changes_model=True,
        is_shown=True,
    ),
    "perturbation": Entry(
        "resurface.attacks.perturbation",
        "resurface.settings.perturbation:PerturbationSettings",
        changes_prompts=True,
        transfers="text_thresholds",
        is_shown=True,
    ),
    "random_prefix": Entry(
        "resurface.attacks.random_prefix",
        "resurface.settings.random_prefix:RandomPrefixSettings",
        changes_prompts=True,
    ),
    "gcg": Entry(
        "resurface.attacks.gcg",
        "resurface.settings.gcg:GCGSettings",
        changes_prompts=True,
        transfers="questions",
        is_shown=True,
    ),
    "enhanced_gcg": Entry(
        "resurface.attacks.enhanced_gcg",
        "resurface.settings.enhanced_gcg:EnhancedGCGSettings",
        parts="searches",
        changes_prompts=True,
        transfers="searches",
        is_shown=True,
    ),
    "logit_lens": Entry("resurface.attacks.logit_lens", "resurface.settings.logit_lens:LogitLensSettings"),
}
