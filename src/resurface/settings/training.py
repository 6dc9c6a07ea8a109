"""Settings that every training run shares, under the names of `transformers.TrainingArguments` where it has one."""

from typing import Literal

from pydantic import Field

from resurface.settings.base import Block, Count, DistinctList, PositiveFloat, PositiveInt, Settings


class TrainingSettings(Settings):
    """How a model is trained."""

    learning_rate: PositiveFloat = Field(description="peak learning rate of AdamW")
    batch_size: PositiveInt = Field(description="samples of each kind (forget, retain) a step")
    epochs: PositiveFloat = Field(3.0, description="passes over the data; `max_steps` overrides it")
    max_steps: PositiveInt | None = Field(None, description="optimizer steps; null: by `epochs`")
    warmup_steps: Count = Field(0, description="optimizer steps of linear warmup")
    schedule: Literal["linear", "constant", "cosine"] = Field("linear", description="learning rate after warmup")
    weight_decay: float = Field(0.0, ge=0, description="AdamW's weight decay")
    length: PositiveInt = Field(1024, description="tokens at which a sample is cut")
    trained_blocks: DistinctList[Block] | None = Field(
        None, description="blocks that are trained; null: the whole model"
    )
    adapter: Literal["full", "lora"] = Field(
        "full", description="train the weights themselves, or LoRA merged at the end"
    )
    lora_rank: PositiveInt = Field(64, description="rank of the LoRA update, if `adapter: lora`")
    lora_alpha: PositiveFloat = Field(64.0, description="scale of the LoRA update times its rank")
    save_steps: PositiveInt = Field(
        50, description="optimizer steps between checkpoints that an interrupted job resumes from"
    )
