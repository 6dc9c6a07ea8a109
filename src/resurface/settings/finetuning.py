"""Settings of the finetuning attack. Source: arXiv 2409.18025, appendix."""

from typing import Literal

from pydantic import Field

from resurface.settings.base import DistinctList, Named, PositiveFloat, PositiveInt, Settings, Share

FinetuningData = Literal["forget", "retain", "text"]


class FinetuningSettings(Settings):
    """LoRA finetuning on a few samples."""

    datasets: Named[FinetuningData, DistinctList[PositiveInt]] = Field(
        {
            "forget": [5, 10, 50, 100, 500, 1000],
            "retain": [5, 10, 50, 100, 500, 1000],
            "text": [5000, 10000],
        },
        min_length=1,
        description="data set → sample counts (nested: the first n). `forget`: train questions of the domain; `retain`: benign "
        "questions; `text`: plain texts of the retain corpus",
    )
    lora_rank: PositiveInt = Field(128, description="rank of the LoRA update")
    lora_alpha: PositiveFloat = Field(16.0, description="scale of the LoRA update times its rank")
    learning_rate: PositiveFloat = Field(2e-4, description="peak learning rate of AdamW, linear decay")
    batch_size: PositiveInt = Field(1, description="samples a step")
    epochs: PositiveInt = Field(3, description="passes over the samples")
    warmup_share: Share = Field(0.05, description="share of the steps that is linear warmup")
    weight_decay: float = Field(0.01, ge=0, description="AdamW's weight decay")
    length: PositiveInt = Field(1024, description="tokens at which a sample is cut")
    system: str = Field("You are a helpful assistant.", description="system turn of the training chats")
    save_steps: PositiveInt = Field(
        500, description="optimizer steps between checkpoints that an interrupted job resumes from"
    )
    dtype: Literal["float32", "bfloat16"] = Field(
        "float32", description="precision of the model's own weights, which stay as they are; the update is float32"
    )
    gradient_checkpointing: bool = Field(
        False, description="compute activations twice instead of keeping them: a third more time, far less memory"
    )
    record_steps: bool = Field(
        True,
        description="on one GPU, record a step of each length as a CUDA graph and replay it; false for models whose steps cannot be "
        "recorded. Steps with `gradient_checkpointing` are not",
    )
