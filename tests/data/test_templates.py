import pytest

from sleep_trl.data.prompts import Prompter
from sleep_trl.data.templates import BUILT_IN, Template, render
from tests.tiny import tiny_tokenizer

CHAT = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.mark.parametrize("name", BUILT_IN)
@pytest.mark.parametrize("chat", [False, True])
def test_the_teacher_sees_the_context_and_the_student_does_not(name, chat):
    template = Template.load(name)
    variables = {"request": "REQUEST", "source": "SOURCE", "chat": chat}
    teacher = render(template.respond, context="SECRET", **variables)
    student = render(template.respond, **variables)
    assert "SECRET" in teacher.text and "SECRET" not in student.text
    if template.ask:
        assert "SECRET" in render(template.ask, context="SECRET", source="SOURCE", chat=chat).text
        assert "REQUEST" in teacher.text and "REQUEST" in student.text
    if not chat:
        assert teacher.text.endswith(student.text)


def test_plain_question():
    template = Template.load("question_answer")
    assert render(template.respond, request="Who?", context="Ben.").text == "Ben.\nQuestion: Who?\nAnswer:"
    assert render(template.respond, request="Who?").text == "Question: Who?\nAnswer:"
    assert render(template.ask, context="Ben.").text == "Ben.\nQuestion:"


def test_a_users_template_with_its_request(tmp_path):
    (tmp_path / "mine.j2").write_text("{% set stop = ['END'] %}{{ context or '' }} {{ request }}?")
    (tmp_path / "mine.ask.j2").write_text("Ask about {{ context }}")
    template = Template.load(str(tmp_path / "mine.j2"))
    assert template.name == "mine" and template.ask is not None
    prompt = render(template.respond, request="r", context="c")
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
        render(Template.load(str(tmp_path / "evil.j2")).respond)


def test_prompter_goes_through_the_chat_template():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = CHAT
    ids, text, stop = Prompter(tokenizer)(Template.load("question_answer").respond, request="is Ben a cat")
    assert text == "<user>Answer in as few words as possible.\nis Ben a cat<assistant>" and stop == ()
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
