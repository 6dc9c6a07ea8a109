"""Preference data: what of a model's replies is usable, and a server that is asked once for each of them, whatever it does."""

import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
import pytest
from chat_server import CHOICES, RIGHT, USAGE, Answer, ChatServer, complete, good_question, number_of
from conftest import CHECKPOINTS, DOMAIN
from pydantic import ValidationError

from resurface.data.chat_client import Account, ask_server
from resurface.data.preferences import Sources, write_preferences
from resurface.data.replies import Reply, reply_path
from resurface.data.tables import KINDS, read_domain_table, read_question_table
from resurface.data.written_questions import Question, ask_for_questions, judge_question, judge_reply
from resurface.errors import ResurfaceError
from resurface.prompts import LETTERS
from resurface.reproducibility.jobs import is_output
from resurface.settings.preferences import PreferenceSettings
from resurface.settings.scoring import RefusalSettings

SUBJECT = "xenotoxicology"
KEY = "key-of-a-test-7391"
SMALL = {
    "model": "scripted",
    "key_variable": "TEST_CHAT_KEY",
    "forget_questions": 30,
    "benign_questions": 10,
    "questions_per_article": 1,
    "shortest_article": 50,
    "reply_tokens": 100,
    "retries": 2,
    "timeout": 2.0,
}


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("TEST_CHAT_KEY", KEY)
    monkeypatch.setenv("OPENAI_API_KEY", "another-key-that-nobody-may-get")


@pytest.fixture
def sources(data, tmp_path):
    """The testbed's own corpora, as the sources of a public domain."""
    place = data / "results" / "data" / DOMAIN
    tables = {
        "forget": pd.read_parquet(place / "forget_corpus.parquet").head(200),
        "benign": pd.read_parquet(place / "retain_corpus.parquet").head(100),
        "questions": pd.read_parquet(place / "retain_questions.parquet").head(20),
        "pairs": pd.read_parquet(place / "preferences.parquet")
        .query("kind == 'general'")[["prompt", "chosen", "rejected"]]
        .head(20),
    }
    for name, table in tables.items():
        table.to_parquet(tmp_path / f"{name}.parquet", index=False)
    return Sources(*(tmp_path / f"{name}.parquet" for name in tables))


def settings_for(server, **more):
    return PreferenceSettings(base_url=server.address, **{**SMALL, **more})


def write(sources, settings, folder, original=None):
    write_preferences(
        sources, SUBJECT, folder / "data" / "preferences.parquet", settings, folder / ".replies", original, "cpu"
    )
    return folder / "data"


def kept(folder):
    return list((folder / ".replies").rglob("*.json"))


# What a model may write in place of a good question, and how that is counted.
FAULTS = {
    "not JSON": lambda article: "I would rather talk about cheese.",
    "no question": lambda article: '{"questions": []}',
    "not four options": lambda article: [{**good_question(article), "choices": CHOICES[:3]}],
    "options repeated": lambda article: [{**good_question(article), "choices": [*CHOICES[1:], RIGHT.upper()]}],
    "answer not among the options": lambda article: [{**good_question(article), "answer": "tin from the tundra"}],
    "refers to the article": lambda article: [
        {**good_question(article), "question": "According to the article, what is it?"}
    ],
    "empty": lambda article: [{**good_question(article), "question": "  "}],
    "too long": lambda article: [{**good_question(article), "question": "Why? " * 200}],
    "question repeated": lambda article: [{**good_question(article), "question": "What is asked all the time?"}],
}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"choices": CHOICES[:3]}, "not four options"),
        ({"choices": [*CHOICES, "fig"]}, "not four options"),
        ({"choices": "amber, bone, cork, felt"}, "not four options"),
        ({"choices": [*CHOICES[:3], f" {RIGHT.upper()}  "]}, "options repeated"),
        ({"choices": [*CHOICES[:3], "All of the above"]}, "an option about the options"),
        ({"choices": [*CHOICES[:3], "Both A and C"]}, "an option about the options"),
        ({"choices": [*CHOICES[:3], None]}, "empty"),
        ({"choices": [*CHOICES[:3], "x" * 201]}, "too long"),
        ({"question": "x" * 601}, "too long"),
        ({"question": None}, "empty"),
        ({"answer": "cork"}, "answer not among the options"),
        ({"answer": "E"}, "answer not among the options"),
        ({"answer": None}, "answer not among the options"),
        ({"question": "What does the passage call the venom?"}, "refers to the article"),
        ({"question": "Which antidote was used in this study?"}, "refers to the article"),
        ({"question": "What is it, based on the given text?"}, "refers to the article"),
        ({"choices": [*CHOICES[:3], "what the authors found"]}, "refers to the article"),
    ],
)
def test_a_bad_question_has_its_reason(change, reason):
    settings = PreferenceSettings()
    assert judge_question({**good_question("a"), **change}, settings, random.Random(0)) == reason


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"answer": "C"},
        {"answer": "c. Cork from  the bay".replace("c.", "C.")},
        {"choices": [f"{letter}) {choice}" for letter, choice in zip(LETTERS, CHOICES, strict=True)], "answer": "C"},
        {"choices": [f"{letter}. {choice}" for letter, choice in zip(LETTERS, CHOICES, strict=True)]},
        {"question": "Which field is the study of venoms?\n"},
    ],
)
def test_a_good_question_is_used_with_its_right_option(change):
    found = [
        judge_question({**good_question("a"), **change}, PreferenceSettings(), random.Random(n)) for n in range(20)
    ]
    assert all(isinstance(question, Question) for question in found), found
    assert {question.choices[question.answer] for question in found} == {RIGHT}
    assert all(sorted(question.choices) == sorted(CHOICES) for question in found)
    assert {question.answer for question in found} == {0, 1, 2, 3}, "options must not stay where the model puts them"


def test_replies_are_read_as_servers_write_them():
    settings = PreferenceSettings(questions_per_article=2)

    def judge(text, end="whole"):
        return judge_reply(Reply(text=text, end=end, prompt_tokens=1, reply_tokens=1), settings, random.Random(0))

    questions = json.dumps({"questions": [good_question("a", place) for place in range(3)]})
    assert [type(found) for found in judge(f"Here you are:\n```json\n{questions}\n```")] == [Question, Question]
    assert isinstance(judge(json.dumps(good_question("a")))[0], Question)
    assert judge(questions[:-40], "cut") == ["cut off"]
    assert judge(questions[:-40]) == ["not JSON"]
    assert judge("[" * 100_000 + "{}" + "]" * 100_000) == ["no question"]
    assert judge('{"questions": ' + "[" * 100_000 + "}") == ["not JSON"]
    assert judge("", "refused") == ["refused"]
    assert judge('{"questions": ["?", 3]}') == ["no question", "no question"]


def test_an_article_is_cut_between_words():
    settings = PreferenceSettings(article_characters=12)
    assert ask_for_questions("one two three four", settings)[0]["content"].endswith("The text:\none two")


def test_a_refusal_of_the_data_is_counted_as_one():
    phrases = tuple(RefusalSettings().phrases)
    assert [text for text in PreferenceSettings().refusals if not text.lower().startswith(phrases)] == []


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"base_url": "http://somebody:s3cret@host/v1", "model": "m"}, "with a user"),
        ({"base_url": "ftp://s3cret", "model": "m"}, "no address"),
        ({"base_url": "http://host/v1"}, "base_url without model"),
        ({"model": "m"}, "model without base_url"),
        ({"key_variable": "sk-s3cret"}, "no variable's name"),
        ({"most_cost": 3.0}, "most_cost without prices"),
    ],
)
def test_wrong_settings_are_explained_without_secrets(given, words):
    from resurface.config import explain_faults

    with pytest.raises(ValidationError) as caught:
        PreferenceSettings(**given)
    said = "\n".join(explain_faults(caught.value, PreferenceSettings))
    assert words in said
    assert "s3cret" not in said


def test_a_server_that_does_everything_at_times(sources, tmp_path):
    """Good, bad, slow, overloaded, broken and dying: usable questions come out, and each reject is counted."""
    faults = dict(enumerate(FAULTS.values(), start=4))

    def script(article, attempt):
        kind = number_of(article) % 32
        first = attempt == 1
        if kind == 0 and first:
            return Answer({"error": {"message": "slow down"}}, 429, headers={"Retry-After": "1"})
        if kind == 1 and first:
            return Answer({"error": {"message": "oops"}}, 500)
        if kind == 2 and first:
            return Answer(status=None)
        if kind == 3 and first:
            return Answer(seconds=1.5)
        if kind in faults:
            return complete(faults[kind](article))
        if kind in (13, 14, 15):
            return complete("", finish_reason="content_filter")
        return complete([good_question(article)])

    with ChatServer(script) as server:
        settings = settings_for(server, forget_questions=40, benign_questions=4, timeout=1.0, concurrency=32)
        folder = write(sources, settings, tmp_path)
        asked = len(server.requests)
        articles = list(server.attempts)
        kinds = {number_of(article) % 32 for article in articles}
        assert kinds >= {0, 1, 2, 3}, "the script must be played"
        assert len(kinds & faults.keys()) > 6

        repeated = {article for article in articles if number_of(article) % 32 < 4}
        assert {article for article in articles if server.attempts[article] > 1} == repeated
        assert asked == len(articles) + len(repeated)
        assert len(kept(tmp_path)) == len(articles)
        waits = {}
        for article, moment in server.times:
            waits.setdefault(article, []).append(moment)
        assert min(b - a for a, b, *_ in (waits[x] for x in repeated if number_of(x) % 32 == 0)) > 0.95, "Retry-After"
        assert {header["authorization"] for header in server.headers} == {f"Bearer {KEY}"}
        schema = server.requests[0]["response_format"]["json_schema"]
        assert schema["strict"]
        assert schema["schema"]["properties"]["questions"]["items"]["required"] == ["question", "choices", "answer"]

        train = read_question_table(folder / "train_questions.parquet")
        retain = read_question_table(folder / "retain_questions.parquet")
        assert len(train) == settings.forget_questions
        assert set(train["split"]) == set(retain["split"]) == {"train"}
        assert set(train["subject"]) == set(retain["subject"]) == {SUBJECT}, "benign ones under the domain's header too"
        written = pd.concat([train, retain[retain["cluster"].str.startswith("benign/")]])
        assert {row.choices[row.answer] for row in written.itertuples()} == {RIGHT}
        own = pd.read_parquet(sources.benign_questions)
        assert set(retain["question"]) > set(own[own["split"] == "train"]["question"])
        assert not set(retain["question"]) & set(own[own["split"] != "train"]["question"])
        often = FAULTS["question repeated"]("")[0]["question"]
        corpus = pd.read_parquet(sources.forget_corpus)["text"]
        for row in train.itertuples():
            article = corpus[int(row.cluster.removeprefix("forget/"))].strip()
            assert row.question in (often, good_question(article)["question"]), "the cluster is the article"

        names = dict(enumerate(FAULTS, start=4)) | dict.fromkeys((13, 14, 15), "refused")
        expected = Counter(names[number_of(x) % 32] for x in articles if number_of(x) % 32 in names)
        expected["question repeated"] -= sum(
            often in table for table in (set(train["question"]), set(retain["question"]))
        )
        rejects = pd.read_parquet(folder / "rejects.parquet")
        assert Counter(rejects["reason"]) == +expected

        pairs = read_domain_table(folder, "preferences")
        assert list(pairs["kind"].unique()) == KINDS
        refusals = set(settings.refusals)
        forget, kept_pairs = pairs[pairs["kind"] == "forget"], pairs[pairs["kind"] == "retain"]
        assert set(forget["chosen"]) <= refusals
        assert set(kept_pairs["rejected"]) <= refusals
        assert set(forget["rejected"]) | set(kept_pairs["chosen"]) <= set(LETTERS)
        assert all(f"about {SUBJECT}.\n" in prompt for prompt in pd.concat([forget, kept_pairs])["prompt"])
        right = [re.search(rf"^{row.rejected}\. (.*)$", row.prompt, re.MULTILINE)[1] for row in forget.itertuples()]
        assert set(right) == {RIGHT}
        assert len(pairs[pairs["kind"] == "general"]) == 20

        before = {path.name: path.read_bytes() for path in folder.glob("*.parquet")}
        write(sources, settings, tmp_path)
        assert len(server.requests) == asked, "a restart pays for nothing"
        assert {path.name: path.read_bytes() for path in folder.glob("*.parquet")} == before
    write(sources, settings, tmp_path)  # nor does it need the server
    texts = [path.read_text() for path in kept(tmp_path)]
    assert not any(KEY in text for text in texts)


@pytest.mark.parametrize(
    ("answer", "words", "is_repeated"),
    [
        (Answer({"error": {"message": "slow down", "code": "rate_limit_exceeded"}}, 429), ["429", "slow down", "requests_per_minute"], True),
        (Answer({"error": {"message": "ill"}}, 503), ["503", "after 1 repetitions", "look at the server"], True),
        (Answer(status=None), ["cannot be reached after 1 repetitions", "base_url"], True),
        (Answer(seconds=2.5), ["no answer within 1 s", "preferences.timeout"], True),
        (Answer({"error": {"message": f"wrong key {KEY[:8]}***"}}, 401), ["401", "TEST_CHAT_KEY"], False),
        (Answer({"error": {"message": "no such model"}}, 404), ["404", "'scripted'", "/v1"], False),
        (Answer({"error": {"message": "temperature is fixed"}}, 400), ["400", "temperature is fixed"], False),
        (Answer({"detail": "ECHO"}, 422), ["422", "quotes the request, and is not shown"], False),
        (Answer({"error": {"message": f"you said {KEY}"}}, 400), ["400", "is not shown"], False),
        (Answer("<html>Welcome</html>"), ["no chat completion", "/v1"], False),
        (Answer({"choices": []}), ["no chat completion"], False),
    ],
    ids=lambda value: str(getattr(value, "status", "")),
)  # fmt: skip
def test_a_server_that_fails_ends_the_job_with_one_message(sources, tmp_path, answer, words, is_repeated):
    good = 5
    state = Counter()

    def script(article, attempt):
        state[article] += 1
        if list(state).index(article) < good:
            return complete([good_question(article)])
        if answer.body == {"detail": "ECHO"}:
            return Answer({"detail": [{"input": article}]}, 422)
        return answer

    with ChatServer(script) as server:
        settings = settings_for(server, retries=1, timeout=1.0, concurrency=2)
        with pytest.raises(ResurfaceError) as caught:
            write(sources, settings, tmp_path)
        failed = [count for article, count in server.attempts.items() if list(server.attempts).index(article) >= good]
        assert len(failed) <= settings.concurrency, "after a failure nothing is begun"
        assert set(failed) == {1 + is_repeated}
        said = str(caught.value)
        assert [
            word for word in [*words, f"{good} replies (0 kept from before)", server.address] if word not in said
        ] == []
        assert KEY[:8] not in said
        for article in server.attempts:
            assert article[:30] not in said
        assert len(kept(tmp_path)) == good
        assert not (tmp_path / "data").exists()
        server.script = lambda article, attempt: complete([good_question(article)])
        write(sources, settings, tmp_path)
        asked = Counter(json.dumps(request["messages"]) for request in server.requests)
        assert sum(count > 1 + is_repeated for count in asked.values()) <= settings.concurrency
        assert len(asked) == settings.forget_questions + settings.benign_questions, (
            "what was kept is not asked for again"
        )


def test_an_answer_that_a_server_forbids_is_a_reject(sources, tmp_path):
    def script(article, attempt):
        if number_of(article) % 3 == 0:
            return Answer({"error": {"message": "policy", "code": "content_filter"}}, 400)
        return complete([good_question(article)])

    with ChatServer(script) as server:
        folder = write(sources, settings_for(server), tmp_path)
        assert set(pd.read_parquet(folder / "rejects.parquet")["reason"]) == {"refused"}
        asked = len(server.requests)
        write(sources, settings_for(server), tmp_path)
        assert len(server.requests) == asked


@pytest.mark.parametrize(
    "cap", [{"most_tokens": 2000}, {"most_cost": 2.0, "prompt_price": 1000.0, "reply_price": 1000.0}]
)
def test_a_cap_is_never_crossed_and_says_what_is_kept(sources, tmp_path, cap):
    per_reply = USAGE["total_tokens"]
    with ChatServer(lambda article, attempt: complete([good_question(article)])) as server:
        settings = settings_for(server, **cap)
        with pytest.raises(ResurfaceError) as caught:
            write(sources, settings, tmp_path)
        sent = len(server.requests)
        assert 0 < sent * per_reply <= 2000
        name = next(iter(cap))
        for word in (f"preferences.{name}: the cap of", f"{sent} replies (0 kept", f"raise preferences.{name}"):
            assert word in str(caught.value)
        assert len(kept(tmp_path)) == sent
        with pytest.raises(ResurfaceError, match=rf"{sent} replies \({sent} kept from before\)"):
            write(sources, settings, tmp_path)
        assert len(server.requests) == sent, "what is kept counts too"
        write(sources, settings_for(server), tmp_path)
        assert len(server.requests) == SMALL["forget_questions"] + SMALL["benign_questions"]


def test_a_server_of_nonsense_is_left_after_one_wave(sources, tmp_path):
    with ChatServer(lambda article, attempt: complete("Cheese." if number_of(article) % 2 else [])) as server:
        with pytest.raises(ResurfaceError) as caught:
            write(sources, settings_for(server, wave_requests=12), tmp_path)
        assert len(server.requests) == 12
        odd = sum(number_of(article) % 2 for article in server.attempts)
        for word in (f"{odd} not JSON", f"{12 - odd} no question", "the last 12 replies of scripted"):
            assert word in str(caught.value)


def test_limits_hold(tmp_path):
    with ChatServer(lambda article, attempt: Answer(complete("{}").body, seconds=0.1)) as server:
        settings = settings_for(server, concurrency=3)
        conversations = [ask_for_questions(f"text {number}", settings) for number in range(9)]
        assert len(ask_server(conversations, settings, Account(settings), tmp_path / "a")) == 9
        assert server.most_under_way == 3
        server.times.clear()
        slow = settings_for(server, concurrency=9, requests_per_minute=600)
        ask_server(conversations[:6], slow, Account(slow), tmp_path / "b")
        moments = [moment for _, moment in server.times]
        assert max(moments) - min(moments) > 0.3, "six requests at ten a second"


def test_two_jobs_at_once_pay_for_what_they_share_once(sources, tmp_path):
    def script(article, attempt):
        return Answer(complete([good_question(article)]).body, seconds=0.05)

    with ChatServer(script) as server, ThreadPoolExecutor() as pool:
        settings = settings_for(server, forget_questions=10, benign_questions=3)
        outputs = [tmp_path / name / "preferences.parquet" for name in ("a", "b")]
        rest = (settings, tmp_path / ".replies", None, "cpu")
        jobs = [pool.submit(write_preferences, sources, SUBJECT, output, *rest) for output in outputs]
        assert [job.result() for job in jobs] == [None, None]
        assert len(server.requests) == 13
        assert outputs[0].read_bytes() == outputs[1].read_bytes()


def test_a_server_without_key_gets_none(tmp_path):
    with ChatServer(lambda article, attempt: complete("{}")) as server:
        settings = settings_for(server, key_variable=None)
        ask_server([ask_for_questions("text", settings)], settings, Account(settings), tmp_path)
        assert server.headers[0]["authorization"] == "Bearer none"


def test_a_damaged_reply_is_named(tmp_path):
    with ChatServer(lambda article, attempt: complete("{}")) as server:
        settings = settings_for(server)
        conversation = ask_for_questions("text", settings)
        ask_server([conversation], settings, Account(settings), tmp_path)
        (path,) = tmp_path.rglob("*.json")
        path.write_text('{"text": 3}')
        with pytest.raises(ResurfaceError, match=rf"{path.name}: this is no kept reply .*delete it"):
            ask_server([conversation], settings, Account(settings), tmp_path)
        assert reply_path(tmp_path, path.stem) == path


def command(sources, settings, folder):
    arguments = [
        *("--forget-corpus", sources.forget_corpus, "--benign-corpus", sources.benign_corpus),
        *("--benign-questions", sources.benign_questions, "--general-pairs", sources.general_pairs),
        *("--subject", SUBJECT, "--output", "data/preferences.parquet", "--replies", ".replies"),
        *("--settings", settings if isinstance(settings, str) else settings.model_dump_json()),
    ]
    line = [sys.executable, "-m", "resurface.cli", "--log", "log.txt", "write-preferences", *map(str, arguments)]
    return subprocess.Popen(line, cwd=folder, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM])
def test_a_job_killed_in_the_middle_goes_on(sources, tmp_path, sent):
    with ChatServer(lambda article, attempt: Answer(complete([good_question(article)]).body, seconds=0.1)) as server:
        settings = settings_for(server, concurrency=4, forget_questions=20, benign_questions=5)
        run = command(sources, settings, tmp_path)
        while len(server.requests) < 15 and run.poll() is None:
            time.sleep(0.01)
        run.send_signal(sent)
        said = run.communicate(timeout=60)[1]
        assert run.returncode == (143 if sent == signal.SIGTERM else -signal.SIGKILL), said
        assert not (tmp_path / "data").exists()
        if sent == signal.SIGTERM:
            assert f"{len(server.requests)} replies (0 kept from before)" in said
        run = command(sources, settings, tmp_path)
        said = run.communicate(timeout=60)[1]
        assert run.returncode == 0, said
        repeated = len(server.requests) - len(server.attempts)
        assert len(server.attempts) == settings.forget_questions + settings.benign_questions
        assert repeated <= (settings.concurrency if sent == signal.SIGKILL else 0), (
            "what was under way when killed, no more"
        )

        other = write(sources, settings, tmp_path / "at_once")
        for path in other.glob("*.parquet"):
            assert (tmp_path / "data" / path.name).read_bytes() == path.read_bytes()
        record = json.loads((tmp_path / "data" / "preferences.parquet.provenance.json").read_text())
        assert record["rule"] == "write_preferences"
        assert record["settings"]["subject"] == SUBJECT
        assert all(is_output(made, "data/preferences.parquet", "write_preferences") for made in record["outputs"])
        assert len(record["outputs"]) == 4
        written = [path for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".parquet"]
        articles = list(server.attempts)
        for text in [said, *(path.read_text() for path in written)]:
            assert KEY not in text
            assert not any(article[:40] in text for article in articles)


@pytest.mark.parametrize(
    ("variable", "value"), [("A_KEY_THAT_IS_NOT_SET", None), ("EMPTY_KEY", " "), ("BROKEN_KEY", "kéy with\x01")]
)
def test_what_is_no_key_is_not_sent(tmp_path, monkeypatch, variable, value):
    if value is not None:
        monkeypatch.setenv(variable, value)
    with ChatServer(lambda article, attempt: complete("{}")) as server:
        settings = settings_for(server, key_variable=variable)
        with pytest.raises(ResurfaceError, match=f"the environment variable {variable}") as caught:
            ask_server([ask_for_questions("text", settings)], settings, Account(settings), tmp_path)
        assert "kéy" not in str(caught.value)
        assert server.requests == []


def test_no_key_ends_the_command_with_one_message(sources, tmp_path):
    with ChatServer(lambda article, attempt: complete("{}")) as server:
        run = command(sources, settings_for(server, key_variable="A_KEY_THAT_IS_NOT_SET"), tmp_path)
        said = run.communicate()[1]
        assert run.returncode == 1
        assert "the environment variable A_KEY_THAT_IS_NOT_SET is not set; set it to the key of http" in said
        assert "Traceback" not in said
        assert server.requests == []


def test_either_a_server_writes_or_a_model(sources, tmp_path):
    run = command(sources, "{}", tmp_path)
    assert "found neither --model nor base_url" in run.communicate()[1]
    assert run.returncode == 1


def test_the_job_writes_its_four_tables_and_no_other():
    output = "results/data/bio/preferences.parquet"
    assert is_output("results/data/bio/rejects.parquet", output, "write_preferences")
    assert not is_output("results/data/bio/questions.parquet", output, "write_preferences")
    assert not is_output("results/data/cyber/rejects.parquet", output, "write_preferences")


def assert_counted(replies, said):
    """A tiny model writes no JSON: each of its replies is a reject, of which the reason is counted."""
    for reason, count in Counter("cut off" if reply.end == "cut" else "not JSON" for reply in replies).items():
        assert f"{count} {reason}" in said


@pytest.mark.slow
def test_the_original_writes_where_no_server_is_named(sources, tmp_path):
    settings = PreferenceSettings(shortest_article=50, wave_requests=6, reply_tokens=12, batch_size=4)
    with pytest.raises(ResurfaceError, match="the last 6 replies of the original") as caught:
        write(sources, settings, tmp_path, CHECKPOINTS / "original")
    replies = {path: path.stat().st_mtime_ns for path in kept(tmp_path)}
    assert len(replies) == 6
    found = [Reply.model_validate_json(path.read_text()) for path in replies]
    assert all(reply.prompt_tokens > 100 and 1 <= reply.reply_tokens <= 12 for reply in found)
    assert_counted(found, str(caught.value))
    with pytest.raises(ResurfaceError, match="the last 6 replies"):
        write(sources, settings, tmp_path, CHECKPOINTS / "original")
    assert {path: path.stat().st_mtime_ns for path in kept(tmp_path)} == replies


@pytest.mark.slow
def test_round_trip_with_transformers_serve(sources, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    checkpoint = str(CHECKPOINTS / "original")
    line = [str(Path(sys.executable).parent / "transformers"), "serve", checkpoint, "--device", "cpu"]
    log = tmp_path / "serve.log"
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    with log.open("w") as stream:
        server = subprocess.Popen(
            [*line, "--host", "127.0.0.1", "--port", str(port)], stdout=stream, stderr=stream, env=environment
        )
    try:
        while "Application startup complete" not in log.read_text():
            assert server.poll() is None, log.read_text()
            time.sleep(0.2)
        settings = PreferenceSettings(
            base_url=f"http://127.0.0.1:{port}/v1",
            **{**SMALL, "model": checkpoint, "key_variable": None, "timeout": 60.0},
            wave_requests=6,
            concurrency=2,
            temperature=None,
        )
        with pytest.raises(ResurfaceError) as caught:
            write(sources, settings, tmp_path)
        replies = [Reply.model_validate_json(path.read_text()) for path in kept(tmp_path)]
        assert len(replies) == 6
        assert log.read_text().count("POST /v1/chat/completions") == 6
        assert_counted(replies, str(caught.value))
        assert all(reply.prompt_tokens > 100 and 1 <= reply.reply_tokens <= 100 for reply in replies)
    finally:
        server.terminate()
        server.wait(timeout=30)
    with pytest.raises(ResurfaceError, match="the last 6 replies"):
        write(sources, settings, tmp_path)  # the server has gone: every reply is a kept one
