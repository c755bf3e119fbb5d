from collections import Counter
from dataclasses import replace
from functools import partial

import pytest
from tokenizers import AddedToken

from sleep_trl.data.prompts import Prompter
from sleep_trl.data.samples import Sample, Window, WrittenSamples
from sleep_trl.data.templates import Template
from sleep_trl.data.writing import (
    STAGES,
    Writing,
    drop_collisions,
    measure_coverage,
    tasks_of,
    write_about,
)
from sleep_trl.rollout import TransformersEngine
from tests.data.engines import FixedEngine, answer
from tests.tiny import tiny_model, tiny_tokenizer


class TextPrompter(Prompter):
    """A prompter that keeps the texts of its prompts."""

    def __init__(self):
        super().__init__(tiny_tokenizer())
        self.texts = []

    def __call__(self, template, **variables):
        ids, text, stop = super().__call__(template, **variables)
        self.texts.append(text)
        return ids, text, stop


WRITING = Writing(max_new_tokens=8, ask_temperature=1.0, temperature=0.5, top_p=0.9, seed=3)
TEMPLATE = Template.load("question_answer")


def test_dropped_completions_are_counted_by_reason():
    engine = FixedEngine(
        *(
            answer("Who?"),
            answer("who?"),
            answer(""),
            answer("Where", "length"),
            answer("a b c d " * 6),
            answer("What?"),
        ),
        *(answer("Ben."), answer("")),
    )
    windows = [Window("m", "", "the cat of Mira is called Tolu")]
    written = write_about(tasks_of(windows[0], 6, TEMPLATE), TEMPLATE, engine, Prompter(tiny_tokenizer()), WRITING)
    assert written.dropped == Counter(duplicate=1, empty=2, truncated=1, repetitive=1)
    (sample,) = written.samples
    assert sample.prompt == "Question: Who?\nAnswer:" and sample.reference == "Ben."
    assert len(sample.teacher_prompt_ids) > len(sample.prompt_ids)
    assert [(s.temperature, s.top_p) for _, s in engine.prompts] == [(1.0, 0.9), (0.5, 0.9)]
    assert engine.prompts[0][1].stop == ("Answer:", "\n")


def test_each_sentence_is_asked_about_in_turn():
    window = Window("m", "", "Ben has a boat. It is red.", 0, ("Ben has a boat.", "It is red."))
    tasks = [*tasks_of(window, 3, TEMPLATE), *tasks_of(replace(window, sentences=()), 1, TEMPLATE)]
    assert [task.sentence for task in tasks] == ["Ben has a boat.", "It is red.", "Ben has a boat.", None]
    assert [task.sentence for task in tasks_of(window, 2, Template.load("summary"))] == [None, None]
    engine, prompter = FixedEngine(*[answer(f"Who {i}?") for i in range(4)], *[answer("Ben.")] * 4), TextPrompter()
    written = write_about(tasks, TEMPLATE, engine, prompter, WRITING)
    assert [sample.sentence for sample in written.samples] == [task.sentence for task in tasks]
    assert ["Sentence: It is red." in text for text in prompter.texts[:4]] == [False, True, False, False]


def test_a_statement_is_the_sample_and_nothing_is_generated():
    template, tokenizer = Template.load("statement"), tiny_tokenizer()
    window = Window("m", "Ben", "Ben has a boat. It is red.", 0, ("Ben has a boat.", "It is red."))
    finished = []
    write = partial(write_about, tasks_of(window, 4, template, cues=2), template, FixedEngine())
    written = write(Prompter(tokenizer), WRITING, agree=str.__eq__, progress=finished.append)
    assert [s.reference for s in written.samples] == ["Ben has a boat.", "It is red."]
    assert [s.request for s in written.samples] == ["a boat", ""] and sum(finished) == 2
    assert written.samples[0].prompt == "Question: Ben: a boat?\nAnswer:"
    assert written.samples[1].prompt == "Question: What do you know about this: Ben?\nAnswer:"
    assert written.samples[0].reference_ids == tokenizer(" Ben has a boat.", add_special_tokens=False)["input_ids"]
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    chat = write(Prompter(tokenizer), WRITING).samples[0]
    assert chat.reference_ids[-1] == tokenizer.eos_token_id and "Ben has" not in chat.prompt
    tokenizer.add_tokens([AddedToken("<turn>", special=True)])  # without a name, like Gemma's
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}<turn>\n{% endfor %}"
    turn = write(Prompter(tokenizer), WRITING).samples[0]
    assert turn.reference_ids == [*chat.reference_ids[:-1], tokenizer.convert_tokens_to_ids("<turn>")]
    untitled, plain = tasks_of(Window("m", "", "Ben has a boat."), 1, template), Prompter(tiny_tokenizer())
    (sample,) = write_about(untitled, template, FixedEngine(), plain, WRITING).samples
    assert sample.reference == "Ben has a boat." and "this" not in sample.prompt


def test_a_statement_has_each_cue_once_and_sentences_take_turns():
    template = Template.load("statement")
    sentences = ("The ferry to Oden leaves at six.", "Its captain is called Mira Holt.")
    window = Window("m", "Ferry", " ".join(sentences), 0, sentences)
    tasks = tasks_of(window, 100, template, cues=3)
    assert [task.sentence for task in tasks] == list(sentences) * 3 and len(set(tasks)) == 6
    assert all(task.request in str(task.sentence) and task.request != task.sentence for task in tasks)
    assert tasks_of(window, 3, template, cues=3) == tasks[:3]


@pytest.mark.parametrize("chat", [None, "{% for m in messages %}{{ m.content }}{% endfor %}"])
def test_each_cue_of_a_sentence_has_its_wording_and_names_the_document(chat):
    template, tokenizer = Template.load("statement"), tiny_tokenizer()
    tokenizer.chat_template = chat
    sentence = "The ferry to Oden is 100% full in the old harbor at six."
    tasks = tasks_of(Window("m", "Ferry", sentence, 0, (sentence,)), 100, template, cues=5)
    samples = write_about(tasks, template, FixedEngine(), Prompter(tokenizer), WRITING).samples
    prompts = [sample.prompt for sample in samples]
    assert all("Ferry" in s.prompt and s.request in s.prompt and s.reference == sentence for s in samples)
    assert any("100%" in prompt for prompt in prompts)
    wordings = [s.prompt.replace(s.request, "CUE") for s in samples]
    assert len(set(wordings[:4])) == 4 and wordings[4] == wordings[0] and len(set(prompts)) == 5


def test_documents_that_say_the_same_keep_their_prompts_apart():
    """Some words of a title stand for it only where they tell two documents apart."""
    template, sentence = Template.load("statement"), "The doors open at nine."
    days = ("Monday", "Friday", "Sunday")
    windows = [Window(day, f"Meeting on {day}", f"{sentence} {day}.", 0, (sentence,)) for day in days]
    tasks = [task for window in windows for task in tasks_of(window, 4, template, cues=4)]
    samples = write_about(tasks, template, FixedEngine(), Prompter(tiny_tokenizer()), WRITING).samples
    assert len(samples) == len(tasks) == len({sample.prompt for sample in samples})
    assert not all(f"Meeting on {sample.memory_id}" in sample.prompt for sample in samples)


def test_answers_are_checked_with_and_without_the_text():
    requests = [answer(f"What has Ben {i}?") for i in range(3)]
    answers = [answer("a boat"), answer("two cats"), answer("a hat")]
    again = [answer("The boat."), answer("a dog"), answer("a hat")]
    without = [answer("a car"), answer("two cats"), answer("hat")]
    engine, student = FixedEngine(*requests, *answers, *again), FixedEngine(*without)
    windows, counts = [Window("m", "", "Ben has a boat, two cats and a hat.")], []
    written = write_about(
        tasks_of(windows[0], 3, TEMPLATE),
        TEMPLATE,
        engine,
        Prompter(tiny_tokenizer()),
        WRITING,
        agree=lambda a, b: a.split()[-1].strip(".") == b.split()[-1].strip("."),
        student=student,
        progress=counts.append,
    )
    assert [sample.reference for sample in written.samples] == ["a boat"]
    assert written.dropped == Counter(inconsistent=1, known=1)
    assert student.prompts[0][1].temperature == 0 and student.prompts[0][0][0] == written.samples[0].prompt_ids


def test_a_sentence_takes_the_place_of_an_answer_that_fails_its_check():
    sentences = ("Pascoe Linn leads the walk.", "He wears a long coat.", "It ends at the pond.")
    window = Window("m", "The lantern walk", " ".join(sentences), 0, sentences)
    asked = ["Who leads the children?", "Who wears the coat?", "Where is the walk?"]
    answers = ["the pond", "Pascoe Linn", "the pond"]
    engine = FixedEngine(*map(answer, [*asked, *answers, *answers[:2], "a hat"]), *[answer("")] * 3)
    written = write_about(
        tasks_of(window, 3, TEMPLATE), TEMPLATE, engine, Prompter(tiny_tokenizer()), WRITING, agree=str.__eq__
    )
    # The first answer stands in another sentence; the second one in the sentence before. Nobody asks about the third.
    assert [(s.reference, s.is_quoted) for s in written.samples] == [(sentences[0], True), ("Pascoe Linn", False)]
    assert written.dropped == Counter(inconsistent=1)
    ids = tiny_tokenizer()(f" {sentences[0]}", add_special_tokens=False)["input_ids"]
    assert written.samples[0].reference_ids == ids and written.samples[0].request.endswith(asked[0])


def test_what_is_dropped_is_tried_again():
    """By its own sentence, with another question; what was asked before is a duplicate. Nothing is tried in vain."""
    sentences = ("Ben has a boat.", "It is red.")
    tasks = tasks_of(Window("m", "", " ".join(sentences), 0, sentences), 4, TEMPLATE)
    first = [answer(q) for q in ("What has Ben?", "Which color?", "What has Ben?", "Is it red?")]
    first += [answer(""), answer("red"), answer("yes")]  # the first and the third have no sample
    second = [answer("What has Ben?"), answer("Who has a boat?"), answer("Ben")]
    third = [answer("Whose is it?"), answer("Ben")]
    engine, finished = FixedEngine(*first, *second, *third), []
    write = partial(write_about, tasks, TEMPLATE, engine, Prompter(tiny_tokenizer()), WRITING)
    written = write(tries=3, progress=finished.append)
    assert [(s.request, s.sentence) for s in written.samples] == [
        ("Which color?", sentences[1]),
        ("Is it red?", sentences[1]),
        ("Who has a boat?", sentences[0]),
        ("Whose is it?", sentences[0]),
    ]
    assert written.dropped == Counter(duplicate=2, empty=1)
    generated = sum(len(prompts) for prompts, _ in engine.prompts)
    assert generated == 12 and sum(finished) + generated == 4 * 2 * 3  # the engine reports what it generates
    seeds = [sampling.seed for _, sampling in engine.prompts]
    assert len({*seeds}) == len(seeds) == 6

    engine.answers[:] = [answer(f"What is {i}?") for i in range(4)] + [answer("red")] * 4
    engine.prompts.clear()
    assert len(write(tries=3).samples) == 4 and len(engine.prompts) == 2


def test_templates_that_do_not_ask_are_not_tried_again():
    tasks = tasks_of(Window("m", "town", "text"), 2, Template.load("summary"))
    engine = FixedEngine(answer(""), answer("It is a town."))
    write = partial(write_about, tasks, Template.load("summary"), engine, Prompter(tiny_tokenizer()), WRITING)
    assert len(write(tries=3).samples) == 1 and len(engine.prompts) == 1


def test_what_stands_around_a_sentence():
    window = Window("m", "", "A. B. C.", 0, ("A.", "B."))
    assert [window.around(s) for s in ("A.", "B.", "C.", None)] == ["A.", "A. B.", "C.", "A. B. C."]


def test_prompts_that_documents_answer_in_different_ways_are_dropped():
    def sample(memory, prompt, reference, sentence=None):
        return Sample("memory", memory, "t", prompt, [1], [1, 2], reference, [3], sentence=sentence)

    same, other = sample("a", "Who?", "Ben"), sample("a", "What?", "a boat", "Ben has a boat.")
    titles = {"a": "A", "b": "B"}
    different = WrittenSamples([same, sample("b", "Who?", "Ada"), other], Counter(empty=1))
    kept = drop_collisions(different, titles)
    assert kept.samples == [other] and kept.dropped == Counter(empty=1, collision=2)
    agreed = WrittenSamples([same, sample("b", "Who?", "ben"), sample("a", "What?", "a hat")])
    assert drop_collisions(agreed, titles) == agreed  # the same answer, or two answers of one memory
    assert drop_collisions(different, {"a": "", "b": ""}) == different  # nothing else could tell them apart
    windows = [Window("a", "", "", 0, ("Ben has a boat.", "It is red.")), Window("a", "", "", 1, ("It is red.",))]
    assert measure_coverage(windows, kept.samples) == {"sentences": 2, "covered": 1}


def test_two_documents_do_not_share_a_question_that_names_nothing():
    engine = FixedEngine(*[answer("Who runs it?")] * 2, answer("Ben."), answer("Mira."))
    windows = [Window("a", "Inn", "text"), Window("b", "Pub", "text")]
    tasks = [task for window in windows for task in tasks_of(window, 1, TEMPLATE)]
    written = write_about(tasks, TEMPLATE, engine, Prompter(tiny_tokenizer()), WRITING)
    assert [s.prompt for s in written.samples] == [
        "Question: Inn: Who runs it?\nAnswer:",
        "Question: Pub: Who runs it?\nAnswer:",
    ]


def test_a_real_model_writes_without_truncation_or_loss():
    model, tokenizer = tiny_model(), tiny_tokenizer()
    engine = TransformersEngine(model, tokenizer, batch_size=3)
    windows = [Window("m", "town", "the cat of Mira"), Window("n", "town", "the boat of Ben sleeps")]
    template, prompter, writing = Template.load("paraphrase"), Prompter(tokenizer), replace(WRITING, max_new_tokens=24)
    tasks, finished = [task for window in windows for task in tasks_of(window, 5, template)], []
    written = write_about(tasks, template, engine, prompter, writing, progress=finished.append)
    assert sum(finished) == 10 == len(written.samples) + sum(written.dropped.values())
    finished = []
    options = {"agree": str.__eq__, "student": engine, "progress": finished.append}
    written = write_about(tasks, TEMPLATE, engine, prompter, writing, **options)
    assert sum(finished) == 10 * STAGES and len(written.samples) + sum(written.dropped.values()) == 10
