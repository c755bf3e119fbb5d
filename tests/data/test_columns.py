"""Columns of the memories for rewards: which there are, and which rows get them."""

from sleep_trl.data.columns import add_columns, extra_columns
from sleep_trl.data.documents import MemoryText


def memory(id: str, **columns: object) -> MemoryText:
    return MemoryText(id, "source", "text", (), columns)


def test_columns_of_one_type_and_a_free_name_reach_rewards() -> None:
    found = extra_columns(
        [
            memory("a", level=1, tags=["x"], mixed=1, prompt="p", images=[], meta={"k": 1}),
            memory("b", level=2.5, tags=[], mixed="one", solution=None, meta={"l": "2"}),
            memory("c"),
        ]
    )
    assert found.names == ("level", "tags", "meta", "solution")
    taken = "the rows of a night have a column of that name"
    assert found.left_out == {"mixed": "its values are of different types", "prompt": taken, "images": taken}


def test_rows_of_self_replay_get_none() -> None:
    rows: list[dict] = [
        {"memory_id": id, "part": part} for id, part in (("a", "memory"), ("a", "earlier"), ("", "general"))
    ]
    rows += [{"memory_id": "b", "part": "dream"}, {"memory_id": "b", "questions": []}]
    add_columns(rows, [memory("a", level=1), memory("b", level=2, questions=[3])], ["level", "questions"])
    assert [row["level"] for row in rows] == [1, None, None, 2, 2]
    assert [row["questions"] for row in rows] == [None, None, None, [3], []]  # a row keeps its own
