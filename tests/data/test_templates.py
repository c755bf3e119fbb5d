import re

import pytest

from sleep_trl.data.prompts import Prompter
from sleep_trl.data.templates import BUILT_IN, FOLDER, Template
from tests.tiny import tiny_tokenizer

CHAT = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.mark.parametrize("name", BUILT_IN)
@pytest.mark.parametrize("chat", [False, True])
def test_the_teacher_sees_the_context_and_the_student_does_not(name, chat):
    template = Template.load(name)
    variables = {"request": "REQUEST", "source": "SOURCE", "sentence": "SENTENCE", "chat": chat}
    teacher = template.respond.render(context="SECRET", **variables)
    student = template.respond.render(**variables)
    assert "SECRET" in teacher.text and "SECRET" not in student.text
    if template.ask:
        assert "SECRET" in template.ask.render(context="SECRET", source="SOURCE", chat=chat).text
        assert "REQUEST" in teacher.text and "REQUEST" in student.text
    if not chat:
        assert teacher.text.endswith(student.text)


def test_plain_question():
    template = Template.load("question_answer")
    assert template.respond.render(request="Who?", context="Ben.").text == "Ben.\nQuestion: Who?\nAnswer:"
    assert template.respond.render(request="Who?").text == "Question: Who?\nAnswer:"
    assert template.ask.render(context="Ben.").text == "Ben.\nQuestion:"
    assert template.ask.render(context="Ben. Mia.", sentence="Mia.").text == "Ben. Mia.\nSentence: Mia.\nQuestion:"


EXAMPLES = """{"context": "Ada rows.", "sentence": "Ada rows.", "request": "Who rows?", "response": "Ada"}
{"context": "Leo sings.", "request": "Who sings?", "response": "Leo"}
"""


def test_worked_examples_come_before_prompts_with_a_context(tmp_path):
    for name in ("question_answer.j2", "question_answer.ask.j2"):
        (tmp_path / name).write_text((FOLDER / name).read_text())
    (tmp_path / "question_answer.examples.jsonl").write_text(EXAMPLES)
    template = Template.load(str(tmp_path / "question_answer.j2"))
    prompter = Prompter(tiny_tokenizer(), examples_tokens=10_000)
    _, text, _ = prompter(template.respond, request="Who naps?", context="Mia naps.")
    assert text == (
        "Ada rows.\nQuestion: Who rows?\nAnswer: Ada\n\nLeo sings.\nQuestion: Who sings?\nAnswer: Leo\n\n"
        "Mia naps.\nQuestion: Who naps?\nAnswer:"
    )
    _, text, _ = prompter(template.ask, context="Mia naps.")
    assert text.startswith(
        "Ada rows.\nSentence: Ada rows.\nQuestion: Who rows?\n\nLeo sings.\nQuestion: Who sings?\n\n"
    )
    assert prompter(template.respond, request="Who naps?")[1] == "Question: Who naps?\nAnswer:"  # the student's
    one = prompter.count_tokens("Ada rows.\nQuestion: Who rows?\nAnswer: Ada\n\n")
    few = Prompter(tiny_tokenizer(), examples_tokens=one)
    assert few(template.respond, request="q", context="c")[1].count("Answer:") == 2
    none = Prompter(tiny_tokenizer())
    assert none(template.respond, request="q", context="c")[1] == "c\nQuestion: q\nAnswer:"


def test_texts_are_counted_in_blocks(monkeypatch):
    monkeypatch.setattr("sleep_trl.data.prompts.BLOCK", 100)
    prompter, read = Prompter(tiny_tokenizer()), list[list[str]]()
    ids_of = prompter._ids_of

    def noted(texts):
        read.append(texts)
        return ids_of(texts)

    monkeypatch.setattr(prompter, "_ids_of", noted)
    texts = ["the cat of Mira eats hats.\n" * 50, "hats " * 200, "it eats\n", "", "the cat"]
    assert prompter.count_all(texts) == [len(prompter.ids(text)) for text in texts]
    assert "".join(map("".join, read)) == "".join(texts)
    assert all(sum(map(len, block)) <= 100 for block in read) and len(read[-1]) > 1
    assert prompter.count_all(["x" * 250]) == [3] and prompter.count_all([]) == []  # cut where it has to be


def test_a_text_with_an_unknown_token_cannot_be_spelled():
    prompter = Prompter(tiny_tokenizer())
    assert prompter.can_spell(["the cat", "the zebra", ""]) == [True, False, True]
    prompter.tokenizer.unk_token = None
    assert prompter.can_spell(["the zebra"]) == [True]


def test_worked_examples_are_earlier_turns_of_a_chat(tmp_path):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = CHAT
    prompter, template = Prompter(tokenizer, examples_tokens=10_000), Template.load("question_answer")
    _, text, _ = prompter(template.respond, request="Who naps?", context="Mia naps.")
    count = len(template.respond.examples)
    assert count >= 3 and text.count("<user>") == count + 1 and text.count("<assistant>") == count + 1
    assert all(f"<assistant>{example.reply}<user>" in text for example in template.respond.examples)
    assert all(dict(e.variables)["sentence"] in dict(e.variables)["context"] for e in template.ask.examples)


def test_a_broken_example_is_named(tmp_path):
    (tmp_path / "mine.j2").write_text("{{ context }}")
    for broken in ("{", '{"context": "a"}'):
        (tmp_path / "mine.examples.jsonl").write_text(broken)
        with pytest.raises(ValueError, match=r"mine\.examples\.jsonl, line 1"):
            Template.load(str(tmp_path / "mine.j2"))


def test_a_users_template_with_its_request(tmp_path):
    (tmp_path / "mine.j2").write_text("{% set stop = ['END'] %}{{ context or '' }} {{ request }}?")
    (tmp_path / "mine.ask.j2").write_text("Ask about {{ context }}")
    template = Template.load(str(tmp_path / "mine.j2"))
    assert template.name == "mine" and template.ask is not None
    prompt = template.respond.render(request="r", context="c")
    assert prompt.text == "c r?" and prompt.stop == ("END",)


def test_unknown_and_broken_templates_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"no template 'nope'.*question_answer"):
        Template.load("nope")
    (tmp_path / "bad.j2").write_text("{% if %}")
    with pytest.raises(ValueError, match=r"bad\.j2 cannot be read"):
        Template.load(str(tmp_path / "bad.j2"))


def test_templates_are_sandboxed(tmp_path):
    (tmp_path / "evil.j2").write_text("{{ ''.__class__.__mro__ }}")
    with pytest.raises(Exception, match="unsafe"):
        Template.load(str(tmp_path / "evil.j2")).respond.render()


def test_prompter_goes_through_the_chat_template():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = CHAT
    ids, text, stop = Prompter(tokenizer)(Template.load("question_answer").respond, request="is Ben a cat")
    assert text == "<user>is Ben a cat<assistant>" and stop == ()
    assert ids == tokenizer(text, add_special_tokens=False)["input_ids"]


def test_a_general_prompt_is_never_empty():
    assert Prompter(tiny_tokenizer()).general() == ([1], "", [])


def test_a_base_model_continues_the_text_and_a_chat_model_answers_it():
    tokenizer = tiny_tokenizer()
    ids = tokenizer("the cat", add_special_tokens=False)["input_ids"]
    assert Prompter(tokenizer).general("the cat") == ([1], "", ids)
    tokenizer.chat_template = CHAT
    prompt, text, prefix = Prompter(tokenizer).general("the cat")
    assert text == "<user>the cat<assistant>" and prefix == []
    assert prompt == tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "takes longer than 0.5 s"),
        ("{{ context }}{{ 'x' * 10**9 }}", "a value of 1,000,000,000 elements, of at most 1,000,000"),
        ("{{ 2 ** 1000000 }}", "an exponent of 1,000,000, of at most 64"),
        ("{{ '%2000000000d' % 1 }}", "a field of millions of characters"),
        ("{% for i in range(99999) %}xxxxxxxxxxxx{% endfor %}", "writes 1,199,988 characters. At most 1,000,000"),
        ("{{ nobody }}", "'nobody' is undefined"),
    ],
)
def test_hanging_and_huge_templates_are_refused(tmp_path, monkeypatch, text, message):
    monkeypatch.setattr("sleep_trl.data.sandbox.TIME", 0.5)
    (tmp_path / "mine.j2").write_text(text)
    with pytest.raises(ValueError, match=re.escape(message)):
        Template.load(str(tmp_path / "mine.j2"))


def test_ordinary_operators_still_work(tmp_path):
    (tmp_path / "mine.j2").write_text("{{ 3 * 4 }} {{ '-' * 3 }} {{ 2 ** 8 }} {{ '%05.1f' % 2.5 }} {{ context }}")
    assert Template.load(str(tmp_path / "mine.j2")).respond.render(context="x").text == "12 --- 256 002.5 x"
