"""Public data: small files of the public schema become a domain's tables, anything else is refused by name and place."""

import contextlib
import json
import logging
import os
from pathlib import Path

import lm_eval
import pandas as pd
import pytest
import yaml
from public_data import COUNTS, LONG, questions, write_public_data

from resurface.config import PUBLIC_TASKS
from resurface.data.public import TABLES, join_questions, pick_files, read_rows, write_corpora, write_source
from resurface.data.tables import QUESTION_COLUMNS, draw_split, hash_question, read_domain_table, read_question_table
from resurface.errors import ResurfaceError
from resurface.prompts import HEADER
from resurface.settings.sources import SHARED_TABLES, SourceSettings, data_sets, unread_keys


@pytest.fixture(scope="module")
def public(tmp_path_factory):
    folder = tmp_path_factory.mktemp("public")
    return write_public_data(folder)


def settings(public, **changes):
    rows = {**public["rows"], **changes.pop("rows", {})}
    return SourceSettings.model_validate({**public, **changes, "rows": rows})


@pytest.mark.parametrize(("domain", "subject"), [("bio", "biology"), ("chem", "chemistry"), ("cyber", "cybersecurity")])
def test_wmdp(public, tmp_path, domain, subject):
    write_source(f"wmdp_{domain}", tmp_path / "q.parquet", settings(public))
    table, asked = read_question_table(tmp_path / "q.parquet"), questions(COUNTS[f"wmdp_{domain}"], domain)
    assert set(table["subject"]) == {subject}
    assert list(table["question"]) == list(asked["question"])
    assert [list(found) for found in table["choices"]] == list(asked["choices"])
    assert list(table["answer"]) == list(asked["answer"])
    ids = [hash_question(row.question, row.choices) for row in asked.itertuples()]
    assert list(table["split"]) == [draw_split(question_id) for question_id in ids]
    assert table["cluster"].is_unique


def test_about_a_fifth_of_a_benchmark_is_for_validation():
    splits = [draw_split(hash_question(f"question {number}", "ABCD")) for number in range(2000)]
    assert 0.17 < splits.count("validation") / 2000 < 0.23
    assert set(splits) == {"validation", "test"}


def test_mmlu_is_the_test_split_with_its_subjects(public, tmp_path):
    write_source("mmlu", tmp_path / "q.parquet", settings(public))
    table = read_question_table(tmp_path / "q.parquet")
    assert len(table) == COUNTS["mmlu"]
    assert set(table["subject"]) == {"abstract algebra", "high school us history"}


def test_wikitext_without_headings_and_scraps(public, tmp_path):
    write_source("wikitext", tmp_path / "t.parquet", settings(public))
    assert list(pd.read_parquet(tmp_path / "t.parquet")["text"]) == [LONG.strip(), f"{LONG} twice"]


def test_benign_questions_have_four_choices_whatever_their_labels(public, tmp_path):
    write_source("benign_questions", tmp_path / "q.parquet", settings(public))
    table = read_question_table(tmp_path / "q.parquet")
    assert list(table.columns) == QUESTION_COLUMNS
    assert list(table["cluster"]) == ["easy_0", "easy_1", "easy_2", "challenge_0", "challenge_1"]
    assert list(table["answer"]) == [0, 1, 2, 0, 1]
    assert set(table["split"]) == {"train"}


def test_general_pairs_prefer_the_best_reply_to_a_first_message(public, tmp_path):
    write_source("general_pairs", tmp_path / "p.parquet", settings(public))
    (pair,) = pd.read_parquet(tmp_path / "p.parquet").to_dict("records")
    assert pair == {"prompt": "How is tea made?", "chosen": "With hot water and leaves.", "rejected": "No idea."}


@pytest.mark.parametrize(
    ("domain", "changes", "forget", "retain"),
    [
        ("bio", {}, "bio_forget 0", LONG.strip()),
        ("bio", {"forget_text": "abstract", "retain_text": "domain"}, "Abstract 0", "bio_retain 0"),
        ("cyber", {"retain_text": "domain"}, "cyber_forget 0", "cyber_retain 0"),
    ],
)
def test_corpora(public, tmp_path, domain, changes, forget, retain):
    write_corpora(domain, tmp_path, settings(public, **changes))
    corpora = {name: list(read_domain_table(tmp_path, f"{name}_corpus")["text"]) for name in ("forget", "retain")}
    assert corpora["forget"][0].startswith(forget)
    assert corpora["retain"][0].startswith(retain)
    assert len(corpora["forget"]) == COUNTS[f"{domain}_forget"]
    if "retain_text" in changes:
        assert len(corpora["retain"]) == COUNTS[f"{domain}_retain"], "all files of a split are read"


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "parquet"])
def test_a_corpus_may_be_one_file_of_any_format(public, tmp_path, suffix):
    rows = pd.DataFrame({"text": [f"{LONG}{number}" for number in range(5)], "doi": "10/x"})
    place = tmp_path / f"corpus.{suffix}"
    match suffix:
        case "csv":
            rows.to_csv(place, index=False)
        case "parquet":
            rows.to_parquet(place)
        case _:
            rows.to_json(place, orient="records", lines=suffix == "jsonl")
    write_corpora("bio", tmp_path / "bio", settings(public, bio_forget_corpus=str(place)))
    assert list(read_domain_table(tmp_path / "bio", "forget_corpus")["text"]) == list(rows["text"])


def test_a_file_that_has_changed_is_read_anew(public, tmp_path):
    place = tmp_path / "corpus.jsonl"
    for word in ("first", "other"):
        place.write_text("".join(json.dumps({"text": f"{word} {LONG}{number}"}) + "\n" for number in range(5)))
        os.utime(place, (1e9, 1e9))
        write_corpora("bio", tmp_path / "bio", settings(public, bio_forget_corpus=str(place)))
        assert read_domain_table(tmp_path / "bio", "forget_corpus")["text"][0].startswith(word)


def test_wmdp_s_own_archive_is_read_too(public, tmp_path):
    rows = questions(COUNTS["wmdp_bio"], "bio").to_dict("records")
    for domain in ("bio", "chem"):
        (tmp_path / f"{domain}_questions.json").write_text(json.dumps(rows if domain == "bio" else rows[:1]))
    write_source("wmdp_bio", tmp_path / "q.parquet", settings(public, wmdp=str(tmp_path)))
    assert len(read_question_table(tmp_path / "q.parquet")) == COUNTS["wmdp_bio"]


def test_questions_are_written_ones_to_train_on_and_the_benchmark_s_to_test(public, tmp_path):
    write_source("wmdp_bio", tmp_path / "b.parquet", settings(public))
    benchmark = read_question_table(tmp_path / "b.parquet")
    written = benchmark.head(2).assign(question=["Which rune?", "Which herb?"], split="train")
    written.to_parquet(tmp_path / "w.parquet")
    join_questions(tmp_path / "w.parquet", tmp_path / "b.parquet", tmp_path / "questions.parquet")
    table = read_domain_table(tmp_path, "questions")
    assert list(table["question"]) == [*written["question"], *benchmark["question"]]
    assert list(table["split"]) == ["train", "train", *benchmark["split"]]


SECRET = "a sentence that must not be shown"


def spoil(public, tmp_path, **columns):
    """A copy of WMDP's questions with other columns, and the settings that name it."""
    place = tmp_path / "wmdp-bio.parquet"
    rows = questions(COUNTS["wmdp_bio"], SECRET).to_dict("list")
    pd.DataFrame({key: value for key, value in {**rows, **columns}.items() if value is not None}).to_parquet(place)
    return settings(public, wmdp=str(place))


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"choices": None}, ["the column 'choices' is missing", "found answer, question", "question, choices, answer"]),
        ({"choices": [["a", "b", "c"]] * 12}, ["column 'choices', row 0", "of length 3", "list of 4 texts"]),
        ({"answer": ["A"] * 12}, ["column 'answer', row 0", "str of length 1", "whole number from 0 to 3"]),
        ({"answer": [0] * 11 + [4]}, ["column 'answer', row 11", "found int"]),
        ({"question": ["q"] * 3 + [None] + ["q"] * 8}, ["column 'question', row 3", "found nothing"]),
    ],
)
def test_another_schema_is_refused_without_showing_a_text(public, tmp_path, columns, words):
    with pytest.raises(ResurfaceError) as caught:
        write_source("wmdp_bio", tmp_path / "q.parquet", spoil(public, tmp_path, **columns))
    for word in [str(tmp_path), *words]:
        assert word in str(caught.value)
    assert SECRET not in str(caught.value)
    assert not (tmp_path / "q.parquet").exists()


def test_a_wrong_number_of_rows_is_refused_unless_it_is_meant(public, tmp_path):
    with pytest.raises(ResurfaceError, match=r"found 12 rows; wmdp-bio has 1,273.*sources\.rows\.wmdp_bio"):
        write_source("wmdp_bio", tmp_path / "q.parquet", settings(public, rows={"wmdp_bio": 1273}))
    write_source("wmdp_bio", tmp_path / "q.parquet", settings(public, rows={"wmdp_bio": None}))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, ["no such file or folder", "org/name@main"]),
        ({}, ["no file of wmdp-bio", "there are 0 files"]),
        ({"wmdp-chem/test-00000-of-00001.parquet": b""}, ["no file of wmdp-bio", "there are 1 files"]),
        ({"wmdp-bio/validation-00000-of-00001.parquet": b""}, ["no file of wmdp-bio", "split test"]),
        ({"wmdp-bio/test.parquet": b"PAR1 no parquet"}, ["test.parquet is no readable parquet file"]),
        ({"wmdp-bio/test.jsonl": SECRET.encode()}, ["test.jsonl is no readable jsonl file"]),
    ],
)
def test_other_files_are_refused(public, tmp_path, caplog, content, words):
    place = tmp_path / "wmdp"
    for name, data in (content or {}).items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(data)
    if content is not None:
        place.mkdir(exist_ok=True)
    with caplog.at_level(logging.DEBUG), pytest.raises(ResurfaceError) as caught:
        write_source("wmdp_bio", tmp_path / "q.parquet", settings(public, wmdp=str(place)))
    for word in [str(place), *words]:
        assert word in str(caught.value)
    assert SECRET not in str(caught.value) + caplog.text


def test_nothing_left_is_said(public, tmp_path):
    with pytest.raises(ResurfaceError, match=r"general_pairs: no row .* `language`"):
        write_source("general_pairs", tmp_path / "p.parquet", settings(public, language="fr"))


def test_the_right_column_names_a_missing_choice_of_the_user(public, tmp_path):
    with pytest.raises(ResurfaceError, match="the column 'abstract' is missing; found text"):
        write_corpora("cyber", tmp_path, settings(public, forget_text="abstract"))


def test_a_table_depends_on_its_own_data_sets_only():
    assert set(TABLES) == set(SHARED_TABLES)
    assert data_sets("wmdp_bio") == ["wmdp"]
    assert data_sets("cyber") == ["cyber_forget_corpus", "wmdp_corpora", "wikitext"]
    assert {"mmlu", "oasst2", "bio_forget_corpus"} <= set(unread_keys("wmdp_bio"))
    assert not {"wmdp", "rows"} & set(unread_keys("wmdp_bio"))


@pytest.mark.parametrize(
    ("names", "is_whole"),
    [
        (["train-00000-of-00002", "train-00001-of-00002"], True),
        (["train-00001-of-00002"], False),
        (["train-00000-of-00003", "train-00001-of-00003"], False),
        (["train-00000-of-00001", "train-00001-of-00002"], False),
    ],
)
def test_a_split_of_several_files_is_read_whole(tmp_path, names, is_whole):
    for name in names:
        (tmp_path / f"{name}.parquet").touch()
    if is_whole:
        assert len(pick_files(tmp_path, ["corpus"], "train", "here")) == len(names)
    else:
        with pytest.raises(ResurfaceError, match=r"here: found train-.* are not all of \d files"):
            pick_files(tmp_path, ["corpus"], "train", "here")


def test_splits_of_a_folder_are_told_apart(tmp_path):
    for split, count in (("train", 1), ("auxiliary_train", 2), ("test", 3)):
        questions(count, "x").to_parquet(tmp_path / f"{split}-00000-of-00001.parquet")
    for split, count in (("train", 1), ("test", 3)):
        assert len(read_rows(str(tmp_path), ["all"], split, {}, "mmlu", None)) == count


OWN_TASKS = Path(lm_eval.__file__).parent / "tasks"


def test_every_subject_of_mmlu_has_the_harness_s_header():
    theirs = {path.stem: yaml.safe_load(path.read_text()) for path in OWN_TASKS.glob("mmlu/default/mmlu_*.yaml")}
    ours = {path.stem: yaml.safe_load(path.read_text()) for path in PUBLIC_TASKS.glob("resurface_mmlu_*.yaml")}
    assert set(ours) == {f"resurface_{name}" for name in theirs}
    assert len(ours) == 57
    for name, task in theirs.items():
        metadata = ours[f"resurface_{name}"]["metadata"]
        assert HEADER.format(subject=metadata["subject"]) == task["description"]
        assert metadata["subject"] == task["dataset_name"].replace("_", " "), "what the table holds"
    group = yaml.safe_load((PUBLIC_TASKS / "resurface_mmlu.yaml").read_text())
    assert set(group["task"]) == set(ours)


@pytest.mark.slow
def test_the_harness_s_own_wmdp_and_mmlu_ask_with_the_same_text(public, tmp_path):
    """Rendered by the harness from its own task files on the same documents, header and all."""
    from lm_eval.tasks import TaskManager

    from resurface.scoring.score import build_requests, load_tasks

    class Model:
        tokenizer_name = "none"

    def prompts(task):
        return [request.args for request in build_requests(task, "plain", Model())]

    pairs = {f"resurface_wmdp_{domain}": f"wmdp/wmdp_{domain}.yaml" for domain in ("bio", "chem", "cyber")}
    for subject in ("abstract_algebra", "high_school_us_history"):
        pairs[f"resurface_mmlu_{subject}"] = f"mmlu/default/mmlu_{subject}.yaml"
    (tmp_path / "tasks").mkdir()
    with contextlib.chdir(tmp_path):
        for table in ("wmdp_bio", "wmdp_chem", "wmdp_cyber", "mmlu"):
            write_source(table, Path(f"results/data/sources/{table}.parquet"), settings(public))
        for name, path in pairs.items():
            ours = load_tasks([name])[name]
            documents = tmp_path / f"{name}.jsonl"
            asked = ours.dataset["test"].to_pandas()[["question", "choices", "answer"]]
            asked.to_json(documents, orient="records", lines=True)
            config = {
                "include": str(OWN_TASKS / path),
                "task": "theirs",
                "dataset_path": "json",
                "dataset_name": None,
                "dataset_kwargs": {"data_files": {"test": str(documents)}, "cache_dir": str(tmp_path / "cache")},
                "fewshot_split": None,
                "num_fewshot": 0,
            }
            (tmp_path / "tasks" / "theirs.yaml").write_text(yaml.safe_dump(config))
            manager = TaskManager(include_path=str(tmp_path / "tasks"), include_defaults=False)
            theirs = manager.load(["theirs"])["tasks"]["theirs"]
            assert prompts(ours) == prompts(theirs), name
            assert len(prompts(ours)) >= 16, "four for each question"
