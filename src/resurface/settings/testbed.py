"""Settings of the testbed: which world, and how its two models are pretrained."""

from pydantic import Field, model_validator

from resurface.settings.base import LARGEST, PositiveFloat, PositiveInt, Seed, Settings, Share


class PretrainingSettings(Settings):
    """How the testbed's models are trained from scratch."""

    world_seed: Seed = Field(0, description="seed of the fictional world: names, values, splits")
    seed: Seed = Field(0, description="seed of initialization, documents and tokenizer")
    letter_steps: int = Field(
        3000, ge=50, le=LARGEST, description="most steps on picking letters alone (see `look_up`)"
    )
    letter_loss: PositiveFloat = Field(
        0.02, description="loss on a letter and the EOS after it [nats per token] at which facts begin"
    )
    warmup_steps: PositiveInt = Field(110, description="first steps of all, over which the learning rate rises")
    steps: PositiveInt = Field(6000, description="optimizer steps on the whole mixture, after the letters")
    documents: int = Field(160_000, ge=4, le=LARGEST, description="documents in the corpus, drawn with replacement")
    batch_size: PositiveInt = Field(512, description="documents a step")
    length: PositiveInt = Field(96, description="tokens at which a document is cut")
    learning_rate: PositiveFloat = Field(
        1.2e-3, description="peak learning rate of AdamW, constant on letters, then a cosine to 0"
    )
    weight_decay: float = Field(
        0.5, ge=0, description="AdamW's weight decay of matrices; without it the models remember questions, not facts"
    )
    prompt_weight: Share = Field(0.1, description="weight of a prompt's tokens in the loss; the text after it weighs 1")
    vocabulary: int = Field(
        1536, ge=512, le=LARGEST, description="tokens of the tokenizer: 256 bytes, the special ones, and merges"
    )
    hidden: PositiveInt = Field(128, description="hidden size")
    intermediate: PositiveInt = Field(448, description="inner size of the feed-forward layers")
    blocks: PositiveInt = Field(6, description="number of decoder blocks")
    initialization: PositiveFloat = Field(
        0.05,
        description="standard deviation of the initial weights; with Mistral's 0.02 so small a model never learns letters",
    )
    heads: PositiveInt = Field(4, description="attention heads")
    key_value_heads: PositiveInt = Field(2, description="key and value heads")

    @model_validator(mode="after")
    def check_heads(self) -> "PretrainingSettings":
        """Heads share out the hidden states evenly, in even parts (rotary positions turn pairs), and are shared out themselves."""
        if self.hidden % (2 * self.heads):
            raise ValueError(
                f"found hidden {self.hidden} and heads {self.heads}; hidden must be a multiple of twice the heads"
            )
        if self.heads % self.key_value_heads:
            raise ValueError(
                f"found heads {self.heads} and key_value_heads {self.key_value_heads}; heads must be a multiple of these"
            )
        return self
