"""Interventions: each does what a brute-force loop or the library itself does, and leaves the model as it was."""

import pytest
import torch
from conftest import CHECKPOINTS
from safetensors.torch import save_file

from resurface.decoder import decoder_blocks
from resurface.errors import ResurfaceError
from resurface.interventions import (
    Adapter,
    Directions,
    Prepend,
    Read,
    Variant,
    read_variants,
    write_variants,
)
from resurface.models import load_model
from resurface.scoring.apply import change_model, prompt_changer, record_streams

TOKENS = torch.tensor([[0, 50, 60, 70, 80, 90, 100]])


def logits(model):
    with torch.no_grad():
        return model(input_ids=TOKENS).logits


def test_directions_equal_a_loop_over_positions(model, tmp_path):
    directions = torch.randn(6, 128, generator=torch.Generator().manual_seed(0))
    save_file({"directions": directions}, tmp_path / "d.safetensors")
    before = logits(model)
    with change_model(model, Directions(file="d.safetensors", blocks=[1, 3]), tmp_path):
        changed = logits(model)
    assert torch.equal(logits(model), before)

    decoder = model.get_decoder()
    with torch.no_grad():
        hidden = decoder.embed_tokens(TOKENS)
        positions = torch.arange(TOKENS.shape[1])[None]
        rotary = decoder.rotary_emb(hidden, positions)
        for number, block in enumerate(decoder_blocks(model)):
            output = block(hidden, position_embeddings=rotary, attention_mask=None, position_ids=positions)
            hidden = output[0] if isinstance(output, tuple) else output
            if number in (1, 3):
                unit = directions[number] / directions[number].norm()
                for place in range(hidden.shape[1]):
                    hidden[0, place] -= torch.dot(hidden[0, place], unit) * unit
                assert torch.allclose(hidden @ unit, torch.zeros(1, TOKENS.shape[1]), atol=1e-4)
        expected = model.lm_head(decoder.norm(hidden))
    assert not torch.allclose(changed, before, atol=1e-2)
    assert torch.allclose(changed, expected, atol=1e-4)


def test_a_zero_direction_changes_nothing(model, tmp_path):
    save_file({"directions": torch.zeros(6, 128)}, tmp_path / "d.safetensors")
    before = logits(model)
    with change_model(model, Directions(file="d.safetensors", blocks=[0, 5]), tmp_path):
        assert torch.equal(logits(model), before)


def test_an_adapter_equals_peft(model, tmp_path):
    from peft import LoraConfig, PeftModel, get_peft_model

    torch.manual_seed(0)
    adapted = get_peft_model(
        load_model(CHECKPOINTS / "original", torch.device("cpu")),
        LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False),
    )
    adapted.save_pretrained(tmp_path / "a")
    expected = logits(
        PeftModel.from_pretrained(load_model(CHECKPOINTS / "original", torch.device("cpu")), tmp_path / "a").eval()
    )
    before = logits(model)
    with change_model(model, Adapter(folder="a"), tmp_path):
        changed = logits(model)
    assert not torch.allclose(changed, before, atol=1e-2)
    assert torch.allclose(changed, expected, atol=1e-3)
    assert torch.equal(logits(model), before)


def test_the_last_block_is_the_output_and_streams_add_up(model):
    reads = [Read(stream=stream, block=5) for stream in ("attention", "middle", "mlp", "block")]
    below = Read(stream="block", block=4)
    with torch.no_grad(), record_streams(model, [*reads, below]) as streams:
        output = model(input_ids=TOKENS).logits
    attention, middle, mlp, block = (streams[read] for read in reads)
    assert torch.allclose(model.lm_head(model.get_decoder().norm(block)), output, atol=1e-4)
    assert torch.allclose(streams[below] + attention, middle, atol=1e-4)
    assert torch.allclose(middle + mlp, block, atol=1e-4)


def test_a_place_that_is_read_twice_is_recorded(model):
    """As by two variants of different names in a stranger's file."""
    for stream in ("middle", "block", "mlp"):
        read = Read(stream=stream, block=2)
        with record_streams(model, [read, read]) as streams:
            logits(model)
        assert list(streams) == [read]


def test_variants_survive_writing_and_bad_ones_are_named(tmp_path):
    variants = [
        Variant(variant="a-n5", model=Adapter(folder="a-n5")),
        Variant(variant="mlp-block3", prompt=Prepend(text='"quotes"\n'), read=Read(stream="mlp", block=3)),
    ]
    write_variants(tmp_path, variants)
    assert read_variants(tmp_path) == variants
    assert prompt_changer(variants[1].prompt, tmp_path)("Q") == '"quotes"\nQ'
    (tmp_path / "variants.json").write_text('[{"variant": "../up"}]')
    with pytest.raises(ResurfaceError, match=r"variants\.json"):
        read_variants(tmp_path)
