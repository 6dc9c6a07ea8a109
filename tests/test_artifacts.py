"""Outputs: whole or not at all, hashed, checked; tables: read with words for what is wrong."""

import json
import os
import re
import shutil
import threading
from pathlib import Path

import pandas as pd
import pytest
from conftest import CHECKPOINTS
from filelock import FileLock
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from resurface.artifacts import (
    check_folder,
    hash_folder,
    hashes_path,
    holding_lock,
    publish,
    publish_folder,
    read_table,
    write_table,
)
from resurface.checkpoints import check_checkpoint, take_over
from resurface.errors import ResurfaceError


def test_nothing_half_written_stays(tmp_path):
    output = tmp_path / "below" / "table.txt"
    with pytest.raises(RuntimeError), publish(output) as temporary:
        temporary.write_text("half")
        raise RuntimeError("broken off")
    assert list(output.parent.iterdir()) == []


def test_an_old_output_survives_a_failed_new_one(tmp_path):
    output = tmp_path / "table.txt"
    output.write_text("old")
    with pytest.raises(KeyboardInterrupt), publish(output) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert output.read_text() == "old"
    assert list(tmp_path.iterdir()) == [output]


def test_a_full_disk_is_named(tmp_path):
    with pytest.raises(ResurfaceError, match=r"table\.txt: the disk is full"), publish(tmp_path / "table.txt"):
        Path("/dev/full").write_text("x")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "error",
    [
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
        SafetensorError("Error while serializing: I/O error: Disk quota exceeded (os error 122)"),
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534"),
        RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed"),
    ],
)
def test_a_full_disk_is_named_whatever_a_library_calls_it(tmp_path, error):
    with pytest.raises(ResurfaceError, match="model: the disk is full"), publish_folder(tmp_path / "model"):
        raise error
    assert list(tmp_path.iterdir()) == []


def test_two_holders_of_a_lock_never_meet(tmp_path):
    lock = tmp_path / "place" / "x.lock"
    inside, meetings = [], []

    def hold():
        for _ in range(25):
            with holding_lock(lock, tmp_path / "x"):
                inside.append(1)
                meetings.append(len(inside))
                inside.pop()

    threads = [threading.Thread(target=hold) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert meetings == [1] * 100
    assert list(lock.parent.iterdir()) == []


def test_a_lock_file_goes_before_its_lock(tmp_path, monkeypatch):
    """Else whoever waits gets it in between, and the file that a third one then locks is another."""
    there = []

    class Watched(FileLock):
        def release(self, force=False):
            there.append(Path(self.lock_file).exists())
            super().release(force)

    monkeypatch.setattr("resurface.artifacts.FileLock", Watched)
    with holding_lock(tmp_path / "x.lock", tmp_path / "x"):
        assert (tmp_path / "x.lock").exists()
    assert there[0] is False


def test_two_writers_do_not_meet(tmp_path, monkeypatch):
    monkeypatch.setattr("resurface.artifacts.LOCK_SECONDS", 0.1)
    output = tmp_path / "table.txt"
    with (
        FileLock(tmp_path / ".table.txt.lock"),
        pytest.raises(ResurfaceError, match="another process has been writing it for 0 seconds"),
        publish(output),
    ):
        pass


def test_who_waits_for_a_lock_says_so_and_gets_it(tmp_path, caplog):
    lock = FileLock(tmp_path / ".table.txt.lock", thread_local=False)
    lock.acquire()
    threading.Timer(0.5, lock.release).start()
    with caplog.at_level("INFO", "resurface"), publish(tmp_path / "table.txt") as temporary:
        temporary.write_text("x")
    assert "table.txt: waiting for another process that is writing it" in caplog.text
    assert list(tmp_path.iterdir()) == [tmp_path / "table.txt"]


def test_all_files_have_reached_the_disk_before_a_folder_gets_its_name(tmp_path, monkeypatch):
    synced = []

    def watch(descriptor):
        assert not (tmp_path / "model").exists()
        synced.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)

    monkeypatch.setattr(os, "fsync", watch)
    with publish(tmp_path / "model") as temporary:
        (temporary / "below").mkdir(parents=True)
        (temporary / "a").write_text("a")
        (temporary / "below" / "b").write_text("b")
    assert sorted(synced) == ["a", "b"]


def test_a_changed_missing_or_new_file_is_named(tmp_path):
    folder = tmp_path / "model"
    with publish_folder(folder) as temporary:
        (temporary / "a.txt").write_text("a")
        (temporary / "b").mkdir()
        (temporary / "b" / "c.txt").write_text("c")
    assert check_folder(folder) == folder
    assert json.loads(hashes_path(folder).read_text()) == hash_folder(folder)
    (folder / ".snakemake_timestamp").touch()
    assert check_folder(folder) == folder
    (folder / "b" / "c.txt").write_text("d")
    with pytest.raises(ResurfaceError, match=r"c\.txt: this file was changed"):
        check_folder(folder)
    (folder / "b" / "c.txt").unlink()
    with pytest.raises(ResurfaceError, match=r"c\.txt: this file is missing"):
        check_folder(folder)
    (folder / "b" / "c.txt").write_text("c")
    (folder / "stranger").touch()
    with pytest.raises(ResurfaceError, match="stranger: this file is new"):
        check_folder(folder)


@given(st.binary(min_size=1, max_size=200))
@settings(max_examples=50)
def test_bytes_that_are_no_parquet(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("tables") / "t.parquet"
    path.write_bytes(content)
    with pytest.raises(ResurfaceError, match=r"t\.parquet: this is no readable parquet"):
        read_table(path, ["text"])


def test_faults_of_tables_are_named(tmp_path):
    path = tmp_path / "t.parquet"
    with pytest.raises(ResurfaceError, match="no such file"):
        read_table(path, ["text"])
    write_table(pd.DataFrame({"txt": ["x"]}), path)
    with pytest.raises(ResurfaceError, match=r"'text' is missing; found txt"):
        read_table(path, ["text"])
    write_table(pd.DataFrame({"text": []}), path)
    with pytest.raises(ResurfaceError, match="no rows"):
        read_table(path, ["text"])


def broken(tmp_path, name, content):
    import shutil

    folder = tmp_path / "checkpoint"
    shutil.copytree(CHECKPOINTS / "original", folder)
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(content)
    return folder


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("config.json", None, "config.json is missing"),
        ("config.json", b"{", "no readable JSON"),
        ("config.json", b'{"architectures": ["BertModel"]}', "BertModel"),
        ("config.json", b'{"architectures": ["GPT2LMHeadModel"]}', "GPT2LMHeadModel"),
        ("tokenizer.json", None, "no tokenizer; expected one of tokenizer.json"),
        ("model.safetensors", None, "neither model.safetensors nor"),
        ("model.safetensors", b"", "no whole safetensors"),
        ("model.safetensors", b"x" * 100, "no whole safetensors"),
        ("model.safetensors", (CHECKPOINTS / "original/model.safetensors").read_bytes()[:-1000], "truncated"),
    ],
)
def test_broken_checkpoints_are_named_and_leave_nothing(tmp_path, name, content, words):
    folder = broken(tmp_path, name, content)
    with pytest.raises(ResurfaceError, match=words) as caught:
        take_over(folder, tmp_path / "results" / "original")
    assert re.search(re.escape(str(folder)), str(caught.value))
    assert not (tmp_path / "results").exists()


def rewrite_weights(folder, file="model.safetensors", rename=lambda name: name):
    """Weights anew under other tensor names or in another file."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    save_file({rename(name): tensor for name, tensor in tensors.items()}, folder / file)
    return list(tensors)


def test_shards_are_found_and_a_missing_one_is_named(tmp_path):
    folder = broken(tmp_path, "testbed.json", None)
    names = rewrite_weights(folder, "model-00001-of-00002.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": dict.fromkeys(names, "model-00001-of-00002.safetensors")}))
    check_checkpoint(folder)
    index.write_text(json.dumps({"weight_map": {names[0]: "model-00002-of-00002.safetensors"}}))
    with pytest.raises(ResurfaceError, match=r"1 of the 1 shards .* first model-00002-of-00002\.safetensors"):
        check_checkpoint(folder)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("model.layers.", "transformer.h.", "block 0 has neither"),
        ("self_attn", "mixer", "block 0 has input_layernorm, mixer, mlp, "),
        ("layers.3.mlp", "layers.3.mixer", "block 3 has .*mixer"),
    ],
)
def test_blocks_of_an_unknown_build_are_named(tmp_path, old, new, words):
    folder = broken(tmp_path, "testbed.json", None)
    rewrite_weights(folder, rename=lambda name: name.replace(old, new))
    with pytest.raises(ResurfaceError, match=f"MistralForCausalLM cannot be handled.*{words}"):
        check_checkpoint(folder)


def test_weights_of_another_shape_are_named(tmp_path):
    import torch

    from resurface.models import load_model

    config = json.loads((CHECKPOINTS / "original/config.json").read_text()) | {"hidden_size": 64}
    folder = broken(tmp_path, "config.json", json.dumps(config).encode())
    with pytest.raises(ResurfaceError, match="checkpoint"):
        load_model(folder, torch.device("cpu"))


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(ResurfaceError, match="no such checkpoint folder"):
        check_checkpoint(tmp_path / "nowhere")


@pytest.mark.parametrize("is_elsewhere", [False, True])
def test_what_was_taught_takes_its_room_once_unless_it_is_another_s(tmp_path, monkeypatch, is_elsewhere):
    """A job that is run again reads results through links, and must not share files with them."""
    place = tmp_path / "theirs" if is_elsewhere else tmp_path / "results" / "taught"
    shutil.copytree(CHECKPOINTS / "original", place)
    if is_elsewhere:
        (tmp_path / "results").mkdir()
        (tmp_path / "results" / "taught").symlink_to(place)
    monkeypatch.chdir(tmp_path)
    take_over(Path("results/taught"), Path("results/models/original"))
    made = tmp_path / "results" / "models" / "original" / "model.safetensors"
    assert made.samefile(place / "model.safetensors") == (not is_elsewhere)
    assert made.read_bytes() == (place / "model.safetensors").read_bytes()


def test_a_users_checkpoint_is_linked_not_copied(tmp_path):
    take_over(CHECKPOINTS / "original", tmp_path / "original")
    assert (tmp_path / "original" / "model.safetensors").is_symlink()
    take_over(Path("testbed:original"), tmp_path / "bundled")
    assert not (tmp_path / "bundled" / "model.safetensors").is_symlink()
    assert hash_folder(tmp_path / "original") == hash_folder(tmp_path / "bundled")
