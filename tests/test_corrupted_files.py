"""Damaged files, a few hundred of them: each ends as one error that names it, or changes nothing, and leaves nothing behind.

Where hashes lie beside a folder, they find every change; the readers must cope on their own too, because a user's own folder
has none. There a changed number in weights is a valid other model, which nothing can tell; everything else must be found.
"""

import json
import logging
import random
import shutil
import struct
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import CHECKPOINTS
from safetensors.torch import load_file, save_file

from resurface.analysis.answers import select_answers
from resurface.analysis.evidence import gather_evidence
from resurface.analysis.summary import read_scores, summarize
from resurface.analysis.tables import PERPLEXITY_KINDS, REFUSAL_KINDS, read_results
from resurface.analysis.verdict import judge as judge_evidence
from resurface.analysis.worst_case import find_worst_case
from resurface.artifacts import check_folder, hash_folder, hashes_path, read_table, write_table
from resurface.attacks.pruning import SCHEMA
from resurface.data.tables import TABLES, read_domain_table
from resurface.errors import ResurfaceError
from resurface.interventions import (
    STEP,
    Adapter,
    Directions,
    Prepend,
    Pruning,
    Read,
    Rewrite,
    Variant,
    write_variants,
)
from resurface.models import load_model, load_tokenizer
from resurface.reproducibility.record import record_path
from resurface.scoring.apply import change_model, prompt_changer, record_streams
from resurface.scoring.score import SCORE_SCHEMA
from resurface.settings.summary import SummarySettings

SECONDS = 10
TOKENS = torch.tensor([[0, 50, 60, 70, 80, 90, 100]])


# What is done to bytes ------------------------------------------------------------------------------------------------


def flip(content: bytes, place: int) -> bytes:
    changed = bytearray(content)
    changed[place] ^= 1 << (place % 8)
    return bytes(changed)


def damages(content: bytes, name: str, flips: int) -> dict[str, bytes]:
    """Damages that any file can take; flips lie at the ends, where formats keep what they say of themselves, and anywhere."""
    generator = random.Random(name)
    size = len(content)
    found = {
        "empty": b"",
        "a byte": content[:1],
        "cut in half": content[: size // 2],
        "cut at the end": content[:-1],
        "cut by 100": content[:-100],
        "longer": content + b"\0",
        "twice": content * 2,
        "zeroed start": bytes(64) + content[64:],
        "zeroed middle": content[: size // 2] + bytes(min(512, size // 4)) + content[size // 2 + min(512, size // 4) :],
        "zeroed end": content[:-64] + bytes(64),
        "a picture": b"\x89PNG\r\n\x1a\n" + content[8:],
        "text": b"not found\n",
    }
    for number in range(flips):
        near = min(size, 600)
        place = [generator.randrange(near), size - 1 - generator.randrange(near), generator.randrange(size)][number % 3]
        found[f"flip at {place}"] = flip(content, place)
    return {damage: changed for damage, changed in found.items() if changed != content}


ODD_VALUES = [None, [], {}, -1, 0, 10**12, 1.5, float("nan"), True, "x", "../../../etc/passwd", [[[]]], "\0", "\x1b[2J"]


def json_damages(content: bytes, name: str, keys: list[str], flips: int = 12) -> dict[str, bytes]:
    """Damages to bytes, and to what JSON says."""
    generator = random.Random(name)
    found = damages(content, name, flips)
    found["deeply nested"] = b"[" * 100_000 + b"]" * 100_000
    found["a list"], found["a number"], found["null"], found["NaN"] = b"[]", b"1", b"null", b"NaN"
    found["no UTF-8"] = b'{"\xff": 1}'
    held = json.loads(content)
    if isinstance(held, dict):
        first = next(iter(held))
        found["a key twice"] = content.rstrip()[:-1] + f", {json.dumps(first)}: 1}}".encode()
        for key in keys:
            found[f"without {key}"] = json.dumps({name: value for name, value in held.items() if name != key}).encode()
            for value in generator.sample(ODD_VALUES, 4):
                found[f"{key} is {value!r}"] = json.dumps({**held, key: value}).encode()
    return found


def with_header(content: bytes, change) -> bytes:
    """A safetensors file whose header is another."""
    length = int.from_bytes(content[:8], "little")
    header = change(json.loads(content[8 : 8 + length]))
    written = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(written)) + written + content[8 + length :]


def with_entry(content: bytes, **values) -> bytes:
    """A safetensors file that says something else of its first tensor."""

    def change(header):
        name = next(key for key in header if key != "__metadata__")
        return {**header, name: {**header[name], **values}}

    return with_header(content, change)


def safetensors_damages(content: bytes, name: str, flips: int = 12) -> dict[str, bytes]:
    return damages(content, name, 0) | {
        "a header longer than the file": struct.pack("<Q", 2**63) + content[8:],
        "a header of all there is": struct.pack("<Q", len(content) - 8) + content[8:],
        "no header": struct.pack("<Q", 0) + content[8:],
        "a header of another kind": with_header(content, lambda header: [header]),
        "an empty header": with_header(content, lambda header: {}),
        "a deep header": with_header(content, lambda header: b"[" * 100_000 + b"]" * 100_000),
        "a negative offset": with_entry(content, data_offsets=[-4, 4]),
        "an offset beyond": with_entry(content, data_offsets=[0, 2**60]),
        "offsets reversed": with_entry(content, data_offsets=[64, 0]),
        "one offset": with_entry(content, data_offsets=[0]),
        "offsets of text": with_entry(content, data_offsets=["0", "64"]),
        "a huge shape": with_entry(content, shape=[2**40, 2**40]),
        "a negative shape": with_entry(content, shape=[-1, -1]),
        "a shape of fractions": with_entry(content, shape=[1.5]),
        "another shape": with_entry(content, shape=[1]),
        "an unknown type": with_entry(content, dtype="F7"),
        "a type of another width": with_entry(content, dtype="F64"),
        "no type": with_entry(content, dtype=None),
    }


# What is damaged ------------------------------------------------------------------------------------------------------


def make_attack(folder: Path, model) -> None:
    """An attack's folder with every kind of intervention."""
    from peft import LoraConfig, get_peft_model

    folder.mkdir(parents=True)
    torch.manual_seed(0)
    adapted = get_peft_model(
        model, LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    )
    adapted.save_pretrained(folder / "lora")
    adapted.unload()
    (folder / "lora" / "README.md").unlink(missing_ok=True)
    save_file({"directions": torch.randn(6, 128)}, folder / "directions.safetensors")
    layers = ["model.layers.0.mlp.down_proj", "model.layers.3.self_attn.q_proj"]
    with pq.ParquetWriter(folder / "masks.parquet", SCHEMA, write_page_checksum=True) as writer:
        for layer in layers:
            is_removed = np.zeros(model.get_submodule(layer).weight.numel(), bool)
            is_removed[0:6000:3] = True
            steps = bytes([0 * STEP + 1] * 2000)  # removed from q = 1 % on, and never kept
            row = [layer, [1.0], [5.0], np.packbits(is_removed).tobytes(), steps]
            writer.write_table(pa.table([[value] for value in row], schema=SCHEMA))
    prompts = pd.DataFrame(
        {"variant": "noise", "prompt": [f"Q{i}" for i in range(50)], "rewritten": [f"R{i}" for i in range(50)]}
    )
    prompts.to_parquet(folder / "prompts.parquet", index=False, write_page_checksum=True)
    write_variants(
        folder,
        [
            Variant(variant="lora", model=Adapter(folder="lora")),
            Variant(variant="one", model=Directions(file="directions.safetensors", blocks=[1, 4])),
            Variant(variant="cut", model=Pruning(file="masks.parquet", p=5.0, q=2.0)),
            Variant(variant="noise", prompt=Rewrite(file="prompts.parquet", name="noise")),
            Variant(variant="prefix", prompt=Prepend(text="please "), read=Read(stream="mlp", block=3)),
        ],
    )


def make_scores(folder: Path) -> list[Path]:
    """Score tables of a small experiment."""
    generator = np.random.default_rng(0)
    paths = []
    for method, attack, skill in (
        ("original", "none", 0.95),
        ("never_learned", "none", 0.3),
        ("never_learned", "finetuning", 0.35),
        ("npo", "none", 0.2),
        ("npo", "finetuning", 0.7),
    ):
        seed = None if method != "npo" and attack == "none" else 0
        rows = []
        for variant in ["none"] if attack == "none" else ["forget-n5", "forget-n20"]:
            for template in ("plain", "chat"):
                for benchmark in ("runecraft", "general"):
                    for number in range(60):
                        logprobs = generator.normal(size=4)
                        logprobs[0] += 4 if generator.random() < skill else -4
                        rows.append(
                            {
                                **{"domain": "runecraft", "method": method, "seed": seed, "attack": attack},
                                **{"variant": variant, "template": template, "benchmark": benchmark, "task": benchmark},
                                "split": "validation" if number % 5 == 0 else "test",
                                "question_id": f"{benchmark}{number}",
                                "cluster": f"{benchmark}{number // 2}",
                                "answer": 0,
                                "prediction": int(logprobs.argmax()),
                                "correct": bool(logprobs.argmax() == 0),
                                "logprobs": logprobs.astype(np.float32).tolist(),
                            }
                        )
        path = folder / f"{method}-{attack}.parquet"
        table = pd.DataFrame(rows)[SCORE_SCHEMA.names].astype({"seed": "Int64"})
        write_table(pa.Table.from_pandas(table, schema=SCORE_SCHEMA, preserve_index=False), path)
        paths.append(path)
    return paths


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """Everything that is damaged, whole: an attack, tables of results, and the model that the attack is put on."""
    folder = tmp_path_factory.mktemp("whole")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # more get into each other's way in so small a model
    model = load_model(CHECKPOINTS / "original", torch.device("cpu"))
    make_attack(folder / "attack", model)
    scores = make_scores(folder / "scores")
    table = read_scores(scores)
    summary = summarize(table, SummarySettings(resamples=100))
    write_table(summary, folder / "summary.parquet")
    write_table(find_worst_case(table, summary, SummarySettings(resamples=100)), folder / "worst_case.parquet")
    evidence = gather_evidence(table, summary, SummarySettings(resamples=100))
    write_table(evidence, folder / "evidence.parquet")
    write_table(judge_evidence(evidence, SummarySettings()), folder / "verdicts.parquet")
    write_table(select_answers(table, summary), folder / "answers.parquet")
    seed = pd.array([0] * 3, dtype="Int64")
    model_columns = {"domain": "runecraft", "method": "npo", "seed": seed}
    write_table(
        pd.DataFrame(
            {**model_columns, "benchmark": "runecraft", "task": "t", "split": "test", "question_id": list("abc")}
        ).assign(template="chat", refused=[True, False, True]),
        folder / "refusals.parquet",
    )
    write_table(
        pd.DataFrame(
            {**model_columns, "attack": "finetuning", "variant": "v", "template": "chat", "question_id": list("abc")}
        ).assign(text="original", tokens=[1, 2, 3], nats=[0.5, 1.0, 1.5]),
        folder / "perplexity.parquet",
    )
    yield folder, model
    torch.set_num_threads(threads)


# What reads it --------------------------------------------------------------------------------------------------------


def logits(model):
    with torch.inference_mode():
        return model(input_ids=TOKENS).logits


def apply_everything(folder: Path, model) -> list[torch.Tensor | list[str]]:
    """What a model answers under every variant of an attack's folder."""
    from resurface.interventions import read_variants

    answers = []
    for variant in read_variants(folder):
        with (
            change_model(model, variant.model, folder),
            record_streams(model, [variant.read] if variant.read else []) as streams,
        ):
            answers += [logits(model), *streams.values()]
        answers.append([prompt_changer(variant.prompt, folder)(f"Q{i}") for i in range(50)])
    return answers


def load_everything(folder: Path):
    tokenizer = load_tokenizer(folder)
    model = load_model(folder, torch.device("cpu"))
    text = tokenizer.apply_chat_template([{"role": "user", "content": "The moss"}], tokenize=False)
    with torch.inference_mode():
        return [model(torch.tensor([tokenizer(text)["input_ids"]])).logits]


def run_command(monkeypatch, *arguments) -> str | None:
    """Run the command line in this process, with its own way to end; the one message if it ends with an error."""
    from resurface.cli import main

    messages: list[str] = []

    class Kept(logging.Handler):
        def emit(self, record):
            messages.append(record.getMessage())

    handler = Kept(level=logging.ERROR)
    log = logging.getLogger("resurface")
    log.addHandler(handler)
    monkeypatch.setattr(sys, "argv", ["resurface", *map(str, arguments)])
    try:
        with pytest.raises(SystemExit) as ended:
            main()
    finally:
        log.removeHandler(handler)
    if not ended.value.code:
        return None
    assert len(messages) == 1
    return messages[0]


def is_equal(one, other) -> bool:
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and torch.equal(one, other)
    if isinstance(one, pd.DataFrame):
        return one.equals(other)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(is_equal, one, other))
    return one == other


def judge(
    path: Path, damaged: dict[str, bytes], read, whole, is_changed_allowed=lambda damage: False
) -> dict[str, int]:
    """Put each damage in a file's place and read: one error that names the place in time, or the result of the whole file."""
    content = path.read_bytes()
    counts = {"error": 0, "equal": 0, "changed": 0}
    wrong = []
    for damage, changed in damaged.items():
        path.write_bytes(changed)
        before = set(path.parent.parent.rglob("*"))
        start = time.monotonic()
        try:
            result = read()
        except ResurfaceError as error:
            counts["error"] += 1
            if str(path.parent) not in str(error):
                wrong.append(f"{damage}: not named: {error}")
        except Exception as error:
            wrong.append(f"{damage}: {type(error).__name__}: {str(error)[:300]}")
        else:
            kind = "equal" if is_equal(result, whole) else "changed"
            counts[kind] += 1
            if kind == "changed" and not is_changed_allowed(damage):
                wrong.append(f"{damage}: another result, and no error")
        if time.monotonic() - start > SECONDS:
            wrong.append(f"{damage}: {time.monotonic() - start:.1f} s")
        left = set(path.parent.parent.rglob("*")) - before
        if left:
            wrong.append(f"{damage}: left {left}")
    path.write_bytes(content)
    assert not wrong, "\n".join([f"{len(wrong)} of {len(damaged)} damages of {path.name}:", *wrong])
    return counts


# ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["lora/adapter_model.safetensors", "directions.safetensors"])
def test_tensors_of_an_attack(shared, tmp_path, name):
    folder, model = shared
    attack = tmp_path / "place" / "attack"
    shutil.copytree(folder / "attack", attack)
    whole, before = apply_everything(attack, model), logits(model)
    damaged = safetensors_damages((attack / name).read_bytes(), name)
    # Zeros in the place of numbers are other numbers; nothing can tell where no hashes are.
    counts = judge(
        attack / name,
        damaged,
        lambda: apply_everything(attack, model),
        whole,
        lambda damage: damage.startswith("zeroed"),
    )
    assert counts["error"] >= 20
    assert torch.equal(logits(model), before), "half an attack stayed in the model"


def test_swapped_and_missing_tensors_of_an_attack(shared, tmp_path):
    folder, model = shared
    attack = tmp_path / "attack"
    shutil.copytree(folder / "attack", attack)
    lora = attack / "lora" / "adapter_model.safetensors"
    tensors = load_file(lora)
    first = next(iter(tensors))
    strange = {
        "a model": load_file(CHECKPOINTS / "original" / "model.safetensors"),
        "directions": {"directions": torch.zeros(6, 128)},
        "A without B": {name: tensor for name, tensor in tensors.items() if name != first},
        "another rank": {**tensors, first: torch.zeros(3, tensors[first].shape[1])},
        "an unknown layer": {name.replace("layers.0", "layers.9"): tensor for name, tensor in tensors.items()},
        "a norm": {name.replace("mlp.down_proj", "input_layernorm"): tensor for name, tensor in tensors.items()},
        "more": {**tensors, "base_model.model.lm_head.weight": torch.zeros(2, 2)},
    }
    for name, content in strange.items():
        save_file({key: value.contiguous() for key, value in content.items()}, lora)
        with pytest.raises(ResurfaceError, match="adapter_model"):
            apply_everything(attack, model)
            pytest.fail(name)
    lora.unlink()
    with pytest.raises(ResurfaceError, match=r"adapter_model\.safetensors: no such file"):
        apply_everything(attack, model)


@pytest.mark.parametrize("tensor", [torch.zeros(5, 128), torch.zeros(6), torch.zeros(6, 128, dtype=torch.int32)])
def test_directions_of_another_shape(shared, tmp_path, tensor):
    folder, model = shared
    attack = tmp_path / "attack"
    shutil.copytree(folder / "attack", attack)
    save_file({"directions": tensor}, attack / "directions.safetensors")
    with pytest.raises(ResurfaceError, match=r"directions\.safetensors: found directions"):
        apply_everything(attack, model)


def test_variants_and_adapter_settings(shared, tmp_path):
    folder, model = shared
    attack = tmp_path / "place" / "attack"
    shutil.copytree(folder / "attack", attack)
    whole, before = apply_everything(attack, model), logits(model)

    def read():
        return apply_everything(attack, model)

    path = attack / "variants.json"
    rows = json.loads(path.read_text())
    generator = random.Random(0)
    odd = [*ODD_VALUES, 6, 10**6, [-1], [6], ["a"], "..", ".", "lora/../..", "/", "a" * 5000]
    damaged = damages(path.read_bytes(), "variants", 40)
    damaged |= json_damages(json.dumps({"a": 1}).encode(), "list", [], 0)
    for place, row in enumerate(rows):
        for part in ("model", "prompt", "read"):
            for key in row.get(part, {}):
                for value in generator.sample(odd, 4):
                    other = [*rows[:place], {**row, part: {**row[part], key: value}}, *rows[place + 1 :]]
                    damaged[f"{place} {part} {key} is {value!r:.40}"] = json.dumps(other).encode()
    damaged["a name twice"] = json.dumps([*rows, rows[0]]).encode()
    # A changed letter of a prefix, a p or a block is a valid other attack.
    judge(
        path,
        damaged,
        read,
        whole,
        lambda damage: (
            "flip" in damage
            or any(key in damage for key in (" q is", " p is", " text is", "blocks is []", "block is 0"))
        ),
    )
    keys = ["peft_type", "r", "lora_alpha", "bias", "use_dora", "rank_pattern", "target_modules"]
    path = attack / "lora" / "adapter_config.json"
    judge(
        path,
        json_damages(path.read_bytes(), "adapter", keys),
        read,
        whole,
        lambda damage: damage.startswith("lora_alpha is"),
    )
    assert torch.equal(logits(model), before)


def change_table(path: Path, change) -> bytes:
    """A parquet file with changed content, as bytes."""
    table = change(pq.read_table(path))
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return sink.getvalue().to_pybytes()


def table_damages(path: Path, flips: int) -> dict[str, bytes]:
    """Damages to bytes, and to what a table says."""
    found = damages(path.read_bytes(), path.name, flips)
    table = pq.read_table(path)
    found["no rows"] = change_table(path, lambda table: table.slice(0, 0))
    for name in table.column_names:
        place = table.column_names.index(name)
        found[f"without {name}"] = change_table(path, lambda table, name=name: table.drop_columns([name]))
        found[f"{name} of lists"] = change_table(
            path, lambda table, name=name, place=place: table.set_column(place, name, pa.array([[["x"]]] * len(table)))
        )
        found[f"{name} of nothing"] = change_table(
            path, lambda table, name=name, place=place: table.set_column(place, name, pa.nulls(len(table)))
        )
        found[f"{name} of bytes"] = change_table(
            path, lambda table, name=name, place=place: table.set_column(place, name, pa.array([b"\xff"] * len(table)))
        )
    return found


@pytest.mark.parametrize("name", ["masks.parquet", "prompts.parquet"])
def test_tables_of_an_attack(shared, tmp_path, name):
    folder, model = shared
    attack = tmp_path / "place" / "attack"
    shutil.copytree(folder / "attack", attack)
    whole, before = apply_everything(attack, model), logits(model)
    counts = judge(attack / name, table_damages(attack / name, 60), lambda: apply_everything(attack, model), whole)
    assert counts["error"] >= 40
    assert torch.equal(logits(model), before)


WEIGHTS = 128 * 448


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"removed": bytes([128]) + bytes(WEIGHTS // 8 - 1)}, None),
        ({"removed": bytes(WEIGHTS // 8 - 1) + bytes([1])}, None),
        ({"removed": bytes(WEIGHTS // 8) + bytes([128])}, "a bit for each of the layer's 57,344 weights"),
        ({"removed": bytes(WEIGHTS // 8 - 2) + bytes([1])}, "a bit for each"),
        ({"removed": bytes([255]) + bytes(WEIGHTS // 8 - 1)}, "a step for each bit that is set"),
        ({"removed": bytes(WEIGHTS // 8)}, "a step for each bit that is set"),
        ({"steps": bytes([1 * STEP])}, "steps beyond the 1 percents q and 1 percents p"),
        ({"steps": bytes([2])}, "steps beyond the 1 percents"),
        ({"q": []}, "needed are 1 to 15 rising numbers"),
        ({"p": [5.0, 1.0]}, "needed are 1 to 15 rising numbers"),
        ({"q": [float(number) for number in range(16)]}, "needed are 1 to 15 rising numbers"),
        ({"layer": "model.layers.0.mlp"}, "no linear layer of that name"),
        ({"steps": bytes(500_000)}, "this model's layers have at most 196,608 weights"),
    ],
)
def test_a_mask_touches_nothing_beyond_its_weight(shared, tmp_path, change, message):
    """Whatever a mask says: it is about the bits of one layer, or it is refused and the model is as before."""
    folder, model = shared
    attack = tmp_path / "attack"
    shutil.copytree(folder / "attack", attack)
    row = {"layer": "model.layers.0.mlp.down_proj", "q": [1.0], "p": [5.0]}
    row |= {"removed": bytes([128]) + bytes(WEIGHTS // 8 - 1), "steps": bytes([1]), **change}
    pq.write_table(pa.Table.from_pylist([row], SCHEMA), attack / "masks.parquet", use_dictionary=False)
    before = logits(model)
    if message is None:
        weight = model.model.layers[0].mlp.down_proj.weight
        kept = weight.detach().clone()
        with change_model(model, Pruning(file="masks.parquet", p=5.0, q=1.0), attack):
            changed = (weight != kept).flatten().nonzero().flatten().tolist()
        assert changed == [0 if change["removed"][0] else WEIGHTS - 1]
    else:
        with pytest.raises(ResurfaceError, match=rf"masks\.parquet: .*{message}"):
            apply_everything(attack, model)
    assert torch.equal(logits(model), before)


CHECKPOINT_KEYS = {
    "config.json": [
        "architectures",
        "model_type",
        "num_hidden_layers",
        "hidden_size",
        "vocab_size",
        "head_dim",
        "num_attention_heads",
        "intermediate_size",
    ],
    "tokenizer_config.json": ["eos_token", "pad_token", "tokenizer_class"],
    "tokenizer.json": ["model", "added_tokens", "pre_tokenizer", "decoder"],
}


@pytest.mark.parametrize("name", [*CHECKPOINT_KEYS, "model.safetensors", "chat_template.jinja"])
def test_checkpoints_without_hashes(tmp_path, name):
    """A user's own: whatever is wrong is an error or a model; what it answers may be another model's."""
    folder = tmp_path / "place" / "checkpoint"
    shutil.copytree(CHECKPOINTS / "original", folder)
    content = (folder / name).read_bytes()
    if name in CHECKPOINT_KEYS:
        damaged = json_damages(content, name, CHECKPOINT_KEYS[name], 9)
    elif name == "model.safetensors":
        damaged = safetensors_damages(content, name)
    else:
        damaged = {
            "a loop": b"{% for x in y %}",
            "a call": b"{{ ''.__class__.__mro__[1].__subclasses__() }}",
            "cut": content[:30],
        }

    def read():
        from resurface.prompts import chat_messages, render_chat

        tokenizer = load_tokenizer(folder)
        text = render_chat(tokenizer, chat_messages("The moss"))
        model = load_model(folder, torch.device("cpu"))
        with torch.inference_mode():
            return [model(torch.tensor([tokenizer(text)["input_ids"]])).logits]

    counts = judge(folder / name, damaged, read, read(), lambda damage: True)
    assert counts["error"] >= (1 if name == "chat_template.jinja" else 12), counts


def test_checkpoints_with_hashes_take_no_change(tmp_path):
    folder = tmp_path / "checkpoint"
    shutil.copytree(CHECKPOINTS / "original", folder)
    hashes_path(folder).write_text(json.dumps(hash_folder(folder)))
    generator = random.Random(0)
    for path in sorted(folder.iterdir()):
        content = path.read_bytes()
        for _ in range(5):
            path.write_bytes(flip(content, generator.randrange(len(content))))
            with pytest.raises(ResurfaceError, match=path.name):
                check_folder(folder)
        path.write_bytes(content)
    check_folder(folder)


def test_hashes(tmp_path):
    folder = tmp_path / "place" / "x"
    folder.mkdir(parents=True)
    (folder / "a.txt").write_text("a")
    path = hashes_path(folder)
    path.write_text(json.dumps(hash_folder(folder)))
    damaged = json_damages(path.read_bytes(), "hashes", ["a.txt", "../b"], 20)
    counts = judge(path, damaged, lambda: check_folder(folder), folder)
    assert counts["error"] >= 30


@pytest.mark.parametrize("name", TABLES)
def test_tables_of_a_domain(data, tmp_path, name):
    source = data / "results" / "data" / "xenotoxicology"
    path = tmp_path / "place" / "data" / f"{name}.parquet"
    path.parent.mkdir(parents=True)
    table = (
        read_table(source / path.name, TABLES[name])
        .groupby(["kind"] if "kind" in TABLES[name] else lambda row: row % 10, sort=False)
        .head(40)
    )
    write_table(table, path)
    whole = read_domain_table(path.parent, name)
    judge(
        path,
        table_damages(path, 20),
        lambda: read_domain_table(path.parent, name),
        whole,
        lambda damage: damage.startswith("cluster"),
    )


def test_score_tables_through_the_command(shared, tmp_path, monkeypatch):
    folder, _ = shared
    scores = tmp_path / "place" / "scores"
    shutil.copytree(folder / "scores", scores)
    path = scores / "npo-finetuning.parquet"
    output = tmp_path / "output" / "summary.parquet"
    output.parent.mkdir()

    def read():
        for old in output.parent.iterdir():
            old.unlink()
        paths = sorted(scores.iterdir())
        message = run_command(monkeypatch, "summarize", *paths, "--output", output, "--settings", '{"resamples": 100}')
        if message is not None:
            assert list(output.parent.iterdir()) == [], "a failed job left something"
            assert message.startswith("error: "), message
            raise ResurfaceError(message)
        assert sorted(output.parent.iterdir()) == [output, record_path(output)]
        return pd.read_parquet(output)

    whole = read()
    damaged = table_damages(path, 60)
    table = pq.read_table(path)
    damaged["fewer rows"] = change_table(path, lambda table: table.slice(1))
    damaged["rows twice"] = change_table(path, lambda table: pa.concat_tables([table, table]))
    damaged["a summary"] = (folder / "summary.parquet").read_bytes()
    damaged["another's table"] = (scores / "npo-none.parquet").read_bytes()
    damaged["hostile names"] = change_table(
        path, lambda table: table.set_column(1, "method", pa.array(["\x1b[2J"] * len(table)))
    )
    assert len(table) > 0
    # Columns that the summary does not need, and another number of choices.
    unneeded = ("task ", "answer ", "prediction ", "without task", "without answer", "without prediction")
    judge(path, damaged, read, whole, lambda damage: damage.startswith(unneeded))


@pytest.mark.parametrize("command", ["worst-case", "weigh", "select-answers"])
def test_a_summary_of_other_scores(shared, tmp_path, monkeypatch, command):
    folder, _ = shared
    summary = tmp_path / "summary.parquet"
    output = tmp_path / "output" / "table.parquet"
    output.parent.mkdir()
    scores = sorted((folder / "scores").iterdir())
    for what, change in {
        "another attack": lambda table: table.replace({"attack": {"finetuning": "pruning"}}),
        "another variant": lambda table: table.replace({"variant": {"forget-n5": "x", "forget-n20": "y"}}),
        "no validation": lambda table: table[table["split"] == "test"],
        "no test": lambda table: table[table["split"] == "validation"],
    }.items():
        if what == "no validation" and command != "worst-case":
            continue  # what was selected is marked on test questions too
        write_table(change(pd.read_parquet(folder / "summary.parquet")), summary)
        message = run_command(monkeypatch, command, *scores, "--summary", summary, "--output", output)
        assert message is not None, what
        assert message.startswith(f"error: {summary}: "), message
        assert list(output.parent.iterdir()) == []


@pytest.mark.parametrize("name", ["summary", "worst_case", "evidence", "verdicts", "answers", "refusals", "perplexity"])
def test_tables_of_the_report(shared, tmp_path, name):
    from rich.console import Console

    from resurface.analysis.tables import ANSWER_KINDS, EVIDENCE_KINDS, SUMMARY_KINDS, VERDICT_KINDS, WORST_CASE_KINDS
    from resurface.analysis.terminal import terminal_table, terminal_verdicts

    folder, _ = shared
    path = tmp_path / "place" / "tables" / f"{name}.parquet"
    path.parent.mkdir(parents=True)
    shutil.copyfile(folder / path.name, path)
    kinds = {
        "summary": SUMMARY_KINDS,
        "worst_case": WORST_CASE_KINDS,
        "evidence": EVIDENCE_KINDS,
        "verdicts": VERDICT_KINDS,
        "answers": ANSWER_KINDS,
        "refusals": REFUSAL_KINDS,
        "perplexity": PERPLEXITY_KINDS,
    }[name]

    def read():
        table = read_results(path, kinds)
        if name == "summary":
            with Console(file=Path("/dev/null").open("w")) as console:
                console.print(terminal_table(table))
        if name == "verdicts":
            with Console(file=Path("/dev/null").open("w")) as console:
                console.print(terminal_verdicts(table))
        return table

    optional = (
        "recovery",
        "excess",
        "surplus",
        "gain",
        "known",
        "control_accuracy",
        "unattacked_accuracy",
        "p_value",
        "p_adjusted",
        "seed",
        "task",
    )
    optional += ("attack",) if name == "verdicts" else ()  # a verdict may rest on none
    judge(
        path,
        table_damages(path, 40),
        read,
        read(),
        lambda damage: damage.startswith(optional) and damage.endswith("nothing"),
    )
