"""Whether a tokenizer has words for a text, or only spells it."""

from pathlib import Path

import pytest
from transformers import AutoTokenizer

from sleep_trl.data.shipped_sets import read_shipped
from sleep_trl.data.sources import read_memories
from sleep_trl.data.vocabulary import find_unread, spelled_share
from tests.tiny import byte_tokenizer

QUICKSTART = Path(__file__).parents[2] / "examples" / "quickstart"
ENGLISH = [memory.text for memory in read_shipped("prose")]


@pytest.fixture(scope="module")
def town():
    """A tokenizer with the words of one town and with all letters, so that no token is unknown to it."""
    return AutoTokenizer.from_pretrained(QUICKSTART / "model")


def test_words_that_are_spelled_letter_by_letter_are_not_read(town) -> None:
    assert spelled_share(town, ENGLISH) > 0.8
    assert "of the different words of the documents" in (find_unread(town, ENGLISH) or "")
    assert spelled_share(town, ["postcards called waterfall"]) == pytest.approx(1 / 3)
    assert find_unread(town, [memory.text for memory in read_memories(str(QUICKSTART / "memories.jsonl"))]) is None


def test_letters_may_be_words_and_a_model_may_read_bytes(town) -> None:
    assert spelled_share(town, ["晚上城市睡觉", "a b c 12345"]) == 0.0
    assert spelled_share(byte_tokenizer(), ENGLISH) == 0.0
