"""Settings that every training run shares, under the names of `transformers.TrainingArguments` where it has one."""

from typing import Literal

from pydantic import Field, model_validator

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
    device_batch_size: PositiveInt | None = Field(
        None,
        description="samples of each kind in one pass on one device, a divisor of `batch_size`: a step adds up as many passes as "
        "it needs; null: all at once. NPO and DPO deal a step's samples to its passes by length, so many of the longest or more of shorter ones. "
        "Where memory runs out it is halved, and the log says so",
    )
    dtype: Literal["float32", "bfloat16"] = Field(
        "float32", description="precision of the weights that are trained; in bfloat16 small updates are rounded away"
    )
    mixed_precision: Literal["auto", "no", "bf16"] = Field(
        "auto", description="accelerate's: what passes compute in; auto: bf16 on a GPU, the weights' own on a CPU"
    )
    saved_dtype: Literal["float32", "bfloat16"] = Field("float32", description="precision of the checkpoint")
    gradient_checkpointing: bool = Field(
        False, description="compute activations twice instead of keeping them: a third more time, far less memory"
    )
    optimizer: Literal["adamw_torch_fused", "adamw_8bit", "paged_adamw_8bit", "adafactor"] = Field(
        "adamw_torch_fused", description="`optim` of `transformers.TrainingArguments`; the 8-bit ones need bitsandbytes"
    )

    @model_validator(mode="after")
    def check_device_batch(self) -> "TrainingSettings":
        """Whole passes make up a step."""
        if self.device_batch_size is not None and self.batch_size % self.device_batch_size:
            raise ValueError(
                f"found batch_size {self.batch_size} and device_batch_size {self.device_batch_size}; the second must divide the "
                "first"
            )
        return self
