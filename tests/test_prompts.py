"""Prompts: one text everywhere, in the harness's tasks as in our own code, and BOS exactly once."""

import pytest
import yaml
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import normalizers, pre_tokenizers, processors

from resurface.errors import ResurfaceError
from resurface.models import load_tokenizer
from resurface.prompts import append_reply, chat_messages, encode_letters, plain_prompt, render_chat, takes_system

text = st.text(
    st.characters(codec="utf-8", exclude_characters="{}\r\n", exclude_categories=["Cs", "Zs", "Cc"]), min_size=1
)


@settings(deadline=None)
@given(text, text, st.lists(text, min_size=4, max_size=4))
def test_the_local_tasks_ask_with_the_same_text(subject, question, choices):
    from lm_eval.utils import apply_template

    source = (ROOT / "src/resurface/testbed/tasks/_questions.yaml").read_text().replace("!function ", "")
    template = yaml.safe_load(source)["doc_to_text"]
    doc = {"subject": subject, "question": question, "choices": choices}
    assert apply_template(template, doc) == plain_prompt(subject, question, choices)


def test_the_plain_prompt_is_that_of_wmdp():
    assert plain_prompt("biology", " Which? ", ["w", "x", "y", "z"]) == (
        "The following are multiple choice questions (with answers) about biology.\n\n"
        "Which?\nA. w\nB. x\nC. y\nD. z\nAnswer:"
    )


def test_chat_form_has_an_empty_system_turn_and_one_bos(tokenizer):
    rendered = render_chat(tokenizer, chat_messages("PROMPT"))
    assert rendered == "<|system|>\n</s>\n<|user|>\nPROMPT</s>\n<|assistant|>\n"
    ids = tokenizer(rendered)["input_ids"]
    assert ids.count(tokenizer.bos_token_id) == 1
    assert ids[0] == tokenizer.bos_token_id


def test_a_template_without_system_turn_and_one_with_bos(tokenizer):
    tokenizer.chat_template = (
        "{{ bos_token }}{% for message in messages %}"
        "{% if message['role'] == 'system' %}{{ raise_exception('no system turn') }}{% endif %}"
        "[{{ message['content'] }}]{% endfor %}"
    )
    assert render_chat(tokenizer, chat_messages("PROMPT")) == "[PROMPT]"


FOLDING = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}[{{ messages[0]['content'] + '\n\n' + messages[1]['content'] }}]"
    "{% else %}[{{ messages[0]['content'] }}]{% endif %}"
)


def test_a_template_that_folds_the_system_turn_into_the_user_turn_gets_no_empty_one(tokenizer):
    tokenizer.chat_template = FOLDING
    assert not takes_system(tokenizer)
    assert render_chat(tokenizer, chat_messages("PROMPT")) == "[PROMPT]"
    assert render_chat(tokenizer, chat_messages("PROMPT", "Be kind.")) == "[Be kind.\n\nPROMPT]"


def test_bos_of_a_template_stays_where_encoding_adds_none(tokenizer):
    """OLMo's tokenizers write BOS in chats only."""
    tokenizer.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.chat_template = FOLDING
    rendered = render_chat(tokenizer, chat_messages("PROMPT"))
    assert rendered == f"{tokenizer.bos_token}[PROMPT]"
    ids = tokenizer(rendered)["input_ids"]
    assert ids.count(tokenizer.bos_token_id) == 1
    assert ids[0] == tokenizer.bos_token_id


def test_a_changed_template_is_looked_at_anew(tokenizer):
    assert takes_system(tokenizer)
    assert render_chat(tokenizer, chat_messages("PROMPT")).startswith("<|system|>")
    tokenizer.chat_template = FOLDING
    assert render_chat(tokenizer, chat_messages("PROMPT")) == "[PROMPT]"


def test_a_model_without_chat_template_is_named(tokenizer):
    tokenizer.chat_template = None
    with pytest.raises(ResurfaceError, match="no chat template"):
        render_chat(tokenizer, chat_messages("PROMPT"))


def test_a_reply_keeps_the_tokens_that_were_written(tokenizer):
    """Two tokens that the tokenizer would read as one: what counts is what the model wrote."""
    before = tokenizer("Answer:")["input_ids"]
    a, b = (tokenizer(letter, add_special_tokens=False)["input_ids"] for letter in "he")
    assert tokenizer("Answer:he")["input_ids"] != before + a + b
    assert append_reply(tokenizer, "Answer:", a + b, 100) == (before + a + b, len(before))
    assert append_reply(tokenizer, "Answer:", a + b, len(before)) == (before, len(before) - 1)


def test_letters_may_share_tokens_before_their_own(tokenizer):
    """As after tokenizers that write a space by itself."""
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(" ", "isolated"), tokenizer.backend_tokenizer.pre_tokenizer]
    )
    before = tokenizer("Answer:")["input_ids"]
    finals = encode_letters(tokenizer, "Answer:")
    assert tokenizer.convert_ids_to_tokens(finals) == ["A", "B", "C", "D"]
    assert len(tokenizer("Answer: A")["input_ids"]) == len(before) + 2


@pytest.mark.parametrize("how", ["in pieces", "unknown", "with an end"])
def test_a_tokenizer_whose_letters_are_no_single_tokens_is_named(tokenizer, tmp_path, how):
    backend = tokenizer.backend_tokenizer
    if how == "in pieces":
        backend.normalizer = normalizers.Sequence([normalizers.Replace(one, f"{one};") for one in "ABCD"])
    elif how == "unknown":
        backend.normalizer = normalizers.Sequence([normalizers.Replace(one, "?") for one in "CD"])
    else:
        eos = (tokenizer.eos_token, tokenizer.eos_token_id)
        backend.post_processor = processors.TemplateProcessing(single=f"$A {eos[0]}", special_tokens=[eos])
    tokenizer.save_pretrained(tmp_path / "model")
    with pytest.raises(ResurfaceError, match=r"model: this tokenizer does not encode each of the letters A, B, C, D"):
        load_tokenizer(tmp_path / "model")


def test_templates_that_refuse_a_system_turn(tokenizer):
    assert takes_system(tokenizer)
    tokenizer.chat_template = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}{{ messages[0].content }}"
    )
    assert not takes_system(tokenizer)


@pytest.mark.parametrize(
    ("template", "day"),
    [
        ("{{ strftime_now('%d %b %Y') }}", "26 Jul 2024"),
        ("\n {{ strftime_now('%Y-%m-%d') }}", "\n 2024-07-26"),
        (
            "{% if not date_string is defined %}{% if strftime_now is defined %}{% set date_string = strftime_now('%d %b %Y') %}"
            "{% else %}{% set date_string = 'no clock' %}{% endif %}{% endif %}{{ date_string }}",
            "26 Jul 2024",
        ),
    ],
)
def test_prompts_are_the_same_every_day(tokenizer, template, day):
    """Templates of Llama 3 tell the model which day it is."""
    tokenizer.chat_template = template + "{% for turn in messages %}[{{ turn.content }}]{% endfor %}"
    assert render_chat(tokenizer, chat_messages("PROMPT")) == f"{day}[][PROMPT]"
