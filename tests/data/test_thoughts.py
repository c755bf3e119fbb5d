import pytest

from sleep_trl.data.thoughts import WithoutThoughts, without_thoughts
from sleep_trl.rollout import Completion, Sampling
from tests.tiny import byte_tokenizer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("Tolu.", "Tolu."),
        ("<think>\nA goat?\n</think>\n\nTolu.", "Tolu."),
        ("A goat?</think> Tolu.", "Tolu."),  # the chat template wrote the beginning
        ("<think></think>Tolu. <think>Sure?</think> Yes.", "Tolu. Yes."),
        ("Tolu. <think>Or", "Tolu. "),
        ("<think>Or", ""),
        ("a < b > c", "a < b > c"),
    ],
)
def test_thoughts_are_taken_out(text, answer):
    assert without_thoughts(text) == answer


class Writes:
    """An engine that writes the same to every prompt."""

    def __init__(self, text: str) -> None:
        self.text = text

    def generate(self, prompts, sampling, progress=None):
        ids = byte_tokenizer()(self.text, add_special_tokens=False)["input_ids"]
        return [Completion(ids, self.text, "eos", [float(n) for n in range(len(ids))]) for _ in prompts]

    def close(self) -> None:
        pass


@pytest.mark.parametrize("thought", ["", "<think>\nA goat?\n</think>\n\n", "A</think>B</think> "])
def test_a_completion_begins_with_the_token_after_its_thought(thought):
    tokenizer = byte_tokenizer()
    engine = WithoutThoughts(Writes(f"{thought}Tolu, a goat."), tokenizer)
    [completion] = engine.generate([[3]], Sampling(8))
    assert completion.text == "Tolu, a goat." == tokenizer.decode(completion.ids)
    assert completion.logprobs == [float(n) for n in range(len(thought), len(thought) + len("Tolu, a goat."))]


def test_a_completion_that_ends_inside_a_thought_is_empty_and_counted(capsys):
    engine = WithoutThoughts(Writes("<think>Let me see"), byte_tokenizer())
    assert [(c.text, c.ids) for c in engine.generate([[3], [4]], Sampling(8))] == [("", [])] * 2
    assert "2 of 2 completions end inside a thought" in " ".join(capsys.readouterr().out.split())
