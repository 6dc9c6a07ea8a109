"""Shapes of decoders: what a model's size follows from, found without loading or downloading it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resurface.artifacts import read_json_object
from resurface.checkpoints import BUNDLED
from resurface.config import Experiment
from resurface.errors import ResurfaceError
from resurface.reproducibility.jobs import MODELS
from resurface.reproducibility.record import record_path


@dataclass(frozen=True)
class Shape:
    """The sizes of a decoder.

    Attributes:
        vocabulary: tokens.
        hidden: dimensions of the residual stream.
        intermediate: inner dimensions of the feed-forward layers.
        blocks: number of blocks.
        attention: output dimensions of all query heads together.
        key_values: output dimensions of all key heads together, and of all value heads.
        matrices: matrices of a feed-forward layer, three if it is gated.
        is_tied: whether input and output embeddings are the same weights.
    """

    vocabulary: int
    hidden: int
    intermediate: int
    blocks: int
    attention: int
    key_values: int
    matrices: int = 3
    is_tied: bool = False

    @property
    def linear_layers(self) -> list[tuple[int, int]]:
        """Input and output dimensions of the linear layers of one block."""
        attention = [
            (self.hidden, self.attention),
            *[(self.hidden, self.key_values)] * 2,
            (self.attention, self.hidden),
        ]
        return attention + [(self.hidden, self.intermediate)] * (self.matrices - 1) + [(self.intermediate, self.hidden)]

    @property
    def block_weights(self) -> int:
        """Weights of the linear layers of all blocks."""
        return self.blocks * sum(inputs * outputs for inputs, outputs in self.linear_layers)

    @property
    def parameters(self) -> int:
        """All weights of the model."""
        embeddings = self.vocabulary * self.hidden * (1 if self.is_tied else 2)
        return self.block_weights + embeddings + self.hidden * (2 * self.blocks + 1)

    def adapter_weights(self, rank: int) -> int:
        """Weights of a LoRA update of all linear layers of the blocks."""
        return self.blocks * rank * sum(inputs + outputs for inputs, outputs in self.linear_layers)


# Source: config.json of mistralai/Mistral-7B-v0.1 and meta-llama/Llama-3.1-8B.
KNOWN = {
    "mistral-7b": Shape(32000, 4096, 14336, 32, 4096, 1024),
    "llama-3.1-8b": Shape(128256, 4096, 14336, 32, 4096, 1024),
}
# What stands in the names of models on the hub, in lower case → their shape.
FAMILIES = {"zephyr": "mistral-7b", "mistral-7b": "mistral-7b", "llama-3.1-8b": "llama-3.1-8b"}


def read_shape(path: Path) -> Shape:
    """The shape that a checkpoint's config.json describes.

    Raises:
        ResurfaceError: the file is missing or damaged, or lacks a size.
    """
    whole = read_json_object(path)
    inner = whole.get("text_config")  # of a model that reads images too
    config: dict[str, Any] = inner if isinstance(inner, dict) else whole
    sizes: dict[str, int] = {}
    for key in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"):
        size = config.get(key)
        if type(size) is not int or size < 1:
            raise ResurfaceError(
                f"{path}: found {key} {size!r}; a plan needs it as a whole number: name a known shape by --shape "
                f"({', '.join(KNOWN)})"
            )
        sizes[key] = size
    heads = sizes["num_attention_heads"]
    head = config.get("head_dim") or sizes["hidden_size"] // heads
    return Shape(
        vocabulary=sizes["vocab_size"],
        hidden=sizes["hidden_size"],
        intermediate=sizes["intermediate_size"],
        blocks=sizes["num_hidden_layers"],
        attention=heads * head,
        key_values=(config.get("num_key_value_heads") or heads) * head,
        matrices=2 if config.get("model_type") == "gpt_neox" else 3,
        is_tied=bool(config.get("tie_word_embeddings", False)),
    )


def _is_made_from(folder: Path, source: str) -> bool:
    """Whether a model in the results comes from a source, as its record says; they may be another experiment's."""
    record = record_path(folder)
    return record.is_file() and source in read_json_object(record).get("command", [])


def find_shape(experiment: Experiment, named: str | None = None) -> Shape:
    """The shape of an experiment's models, from what is on this machine.

    Args:
        experiment: the whole configuration.
        named: a key of `KNOWN`, or the path of a checkpoint folder or of its config.json; None: what `models.original` says.

    Raises:
        ResurfaceError: it cannot be known without a download, or a file is damaged.
    """
    source = experiment.models.original if named is None else named
    if source == "teach":  # the control, after it was taught
        source = experiment.models.never_learned or source
    if source in KNOWN:
        return KNOWN[source]
    if source == "testbed":
        return read_shape(BUNDLED / "original" / "config.json")
    if source == "pretrain":
        made = experiment.pretraining
        head = made.hidden // made.heads
        return Shape(
            made.vocabulary, made.hidden, made.intermediate, made.blocks, made.hidden, made.key_value_heads * head
        )
    places = [Path(source), Path(source) / "config.json"]
    taken_over = Path(MODELS.format(model="original"))
    if named is None and _is_made_from(taken_over, source):
        places.append(taken_over / "config.json")
    for place in places:
        if place.is_file():
            return read_shape(place)
    for family, shape in FAMILIES.items():
        if family in source.lower():
            return KNOWN[shape]
    raise ResurfaceError(
        f"the shape of the model {source!r} is not known: it is not on this machine yet, and nothing is downloaded for a plan. Name "
        f"one that is like it by --shape: {', '.join(KNOWN)}, or the path of a checkpoint's config.json"
    )
