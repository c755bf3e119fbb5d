"""What a model reads of the shipped data sets."""

from sleep_trl.data.prompts import Prompter
from sleep_trl.data.samples import read_plain, write_general
from sleep_trl.data.shipped_sets import MEASURED, REPLAYED, read_shipped, readable_prompts, take, unknown_share
from sleep_trl.evaluation.probes import perplexity_probe
from sleep_trl.rollout import Completion
from tests.tiny import byte_tokenizer, tiny_tokenizer

CHAT = "{% for m in messages %}<user>{{ m.content }}{% endfor %}<assistant>"


class Echo:
    """An engine that answers with the number of the prompt."""

    def __init__(self):
        self.prompts = []

    def generate(self, prompts, sampling, progress=None):
        assert sampling.temperature == 1.0 and not sampling.stop
        self.prompts = list(prompts)
        return [Completion([66], str(i), "eos") for i in range(len(prompts))]


def test_the_share_of_unknown_tokens():
    assert unknown_share(tiny_tokenizer(), ["the cat of Mira", "a dog"]) == 2 / 6
    assert unknown_share(byte_tokenizer(), ["ein Hund 犬"]) == 0
    assert unknown_share(tiny_tokenizer(), []) == 0


def test_a_chat_model_answers_another_shipped_prompt_each_time():
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = CHAT
    prompter, engine = Prompter(tokenizer), Echo()
    texts, left_out = readable_prompts(prompter, 4096, seed=3)
    shipped = [prompt.text for prompt in read_shipped("general_prompts")]
    assert sorted(texts) == sorted(shipped) and texts != shipped and not left_out
    written = write_general(engine, prompter, 136, 8, 1, texts)
    assert [tokenizer.decode(ids) for ids in engine.prompts] == [f"<user>{t}<assistant>" for t in texts[:136]]
    assert len({sample.prompt for sample in written.samples}) == 136
    assert {sample.part for sample in written.samples} == {"general"}


def test_a_base_model_continues_the_shipped_prompts():
    prompter, engine = Prompter(byte_tokenizer()), Echo()
    texts, _ = readable_prompts(prompter, 4096, seed=3)
    written = write_general(engine, prompter, 20, 8, 1, texts)
    assert [sample.prompt_ids for sample in written.samples] == [[0]] * 20
    assert [sample.reference for sample in written.samples] == [f"{text}b" for text in texts[:20]]


def test_prompts_that_a_model_cannot_read_are_left_out_and_counted():
    texts, left_out = readable_prompts(Prompter(byte_tokenizer()), 100, seed=3)
    assert texts and all(len(text.encode()) < 100 for text in texts)
    assert left_out == {"longer than the context": 410 - len(texts)}
    texts, left_out = readable_prompts(Prompter(tiny_tokenizer()), 4096, seed=3)
    assert not texts and left_out == {"not in the tokenizer's vocabulary": 410}


def test_plain_texts_are_read_in_pieces_as_the_perplexity_is_measured():
    tokenizer = byte_tokenizer()
    pieces = read_plain(tokenizer, ["abcdefgh", "xyz"], 9, 4, seed=1)
    assert sorted((s.prompt, s.reference) for s in pieces) == [("a", "bcde"), ("f", "gh"), ("x", "yz")]
    assert all(tokenizer.decode(s.prompt_ids + s.reference_ids) == s.prompt + s.reference for s in pieces)
    assert all(s.part == "general" and s.teacher_prompt_ids == s.prompt_ids for s in pieces)
    assert len(read_plain(tokenizer, ["abcdefgh", "xyz"], 2, 4, seed=1)) == 2


def test_no_shipped_prose_is_both_replayed_and_measured():
    prose = [m.text for m in read_shipped("prose")]
    assert sorted(prose[MEASURED] + prose[REPLAYED]) == sorted({*prose}) and len(prose[REPLAYED]) == 39
    measured = perplexity_probe([], "", byte_tokenizer(), 4096).items
    assert "".join(byte_tokenizer().decode(window) for window in measured) == "".join(prose[MEASURED])


def test_texts_are_repeated_only_when_all_are_used_and_the_first_never():
    assert take("abcd", 3, once=2) == ["a", "b", "c"]
    assert take("abcd", 9, once=2) == [*"abcd", *"cdcdc"]
    assert take("ab", 5, once=2) == [*"ababa"]
    assert take([], 5, once=2) == []
