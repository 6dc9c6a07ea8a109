"""What every attack is given: which model to attack, with which data, and where to leave its interventions."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Target:
    """One model under attack.

    Attributes:
        model_folder: the checkpoint under attack: an unlearned model, the original, or the control.
        original_folder: the original's checkpoint, which some attacks compare with.
        data_folder: the domain's tables; an attack reads `train` questions only. The one exception, `perturbation`, rewrites the prompts
            of the others without reading their answers.
        output: the folder of interventions to write.
        seed: of everything random in the attack.
        device: `auto`, `cpu`, `cuda`, …
        resume_folder: where a long attack keeps its state while it runs.
        start_folder: what the same attack left on another model, for an attack that starts from it.
    """

    model_folder: Path
    original_folder: Path
    data_folder: Path
    output: Path
    seed: int
    device: str
    resume_folder: Path
    start_folder: Path | None = None
