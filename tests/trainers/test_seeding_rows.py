"""The rows of KnowledgeSeedingTrainer: text, token ids or messages, stop strings, missing columns."""

import pytest
from datasets import Dataset
from trl import GRPOConfig

from sleep_trl.data.parts import PARTS
from sleep_trl.rewards import guard
from sleep_trl.trainers import KnowledgeSeedingConfig, KnowledgeSeedingTrainer
from sleep_trl.trainers.knowledge_seeding.rows import normalize
from tests.tiny import tiny_tokenizer
from tests.trainers.seedings import (
    OPTIONS,
    WORDS,
    first_batch,
    length_reward,
    logged,
    of_memories,
    rows,
    student,
    trainer,
)


def test_given_token_ids_are_used_as_they_are(tmp_path):
    given = Dataset.from_list(
        [
            {
                "prompt": "x",
                "prompt_ids": [1, 5 + i, 6],
                "teacher_prompt_ids": [1, 9, 5 + i, 6],
                "reference_ids": [7, 2],
            }
            for i in range(4)
        ]
    )
    batch = first_batch(trainer(tmp_path, data=given))
    assert {tuple(row) for row in batch["prompt_ids"].tolist()} <= {(1, 5 + i, 6) for i in range(4)}
    assert all(
        t[1] == 9 and t[2] == p[1] for t, p in zip(batch["teacher_prompt_ids"], batch["prompt_ids"], strict=True)
    )


def test_rows_of_token_ids_or_messages_need_no_text(tmp_path):
    """Token ids train like the text they encode, with the default reward; a reference may be a message."""
    tokenizer = tiny_tokenizer()
    texts = rows(4).remove_columns("part")
    ids = [
        {
            "prompt_ids": tokenizer(row["prompt"])["input_ids"],
            "teacher_prompt_ids": tokenizer(row["teacher_prompt"])["input_ids"],
            "reference_ids": [*tokenizer(row["reference"], add_special_tokens=False)["input_ids"], 2],
        }
        for row in texts
    ]
    messages = texts.map(lambda row: {"message": [{"role": "assistant", "content": row["reference"]}]})
    messages = messages.remove_columns("reference").rename_column("message", "reference")
    losses = []
    for name, data in {"text": texts, "ids": Dataset.from_list(ids), "messages": messages}.items():
        t = trainer(tmp_path / name, data=data, reward_funcs=None, max_steps=2)
        t.train()
        losses.append(logged(t, "loss"))
    assert losses[0] == losses[1] == losses[2]


@pytest.mark.parametrize("sampling", [{}, {"top_k": 90}], ids=["engine", "trl"])
def test_rollouts_are_no_longer_than_their_rows_allow(tmp_path, sampling):
    """By our engine and by TRL; a row that says nothing has the argument's length, and none gets more."""
    seen = {}

    def keep(prompts, completion_ids, **kwargs):
        for prompt, ids in zip(prompts, completion_ids, strict=True):
            seen.setdefault(prompt, []).append(len(ids))
        return [0.0] * len(prompts)

    data = of_memories(rows(4))
    limits = dict(zip(data["prompt"], [3, None, 5, 100], strict=True))
    data = data.map(lambda row: {"max_completion_length": limits[row["prompt"]]})
    trainer(tmp_path, data=data, reward_funcs=keep, max_steps=6, temperature=3.0, **sampling).train()
    assert {prompt: max(lengths) for prompt, lengths in seen.items()} == {
        prompt: min(limit or 8, 8) for prompt, limit in limits.items()
    }


def test_rollouts_end_at_the_rows_stop_strings(tmp_path):
    seen = []

    def keep(completions, completion_ids, **kwargs):
        seen.extend(zip(completions, completion_ids, strict=True))
        return [0.0] * len(completions)

    data = of_memories(rows(4))
    stopping = data.map(lambda row: {"stop": ["cat", "Mira"]})
    trainer(tmp_path, data=stopping, reward_funcs=keep, max_steps=6, temperature=3.0).train()
    assert seen and all("cat" not in text and "Mira" not in text and ids for text, ids in seen)
    assert len({len(ids) for _, ids in seen}) > 1
    free, seen[:] = list(seen), []
    trainer(tmp_path, data=data, reward_funcs=keep, max_steps=6, temperature=3.0).train()
    assert any("cat" in text or "Mira" in text for text, _ in seen) and len(seen) == len(free)


@pytest.mark.parametrize("split", ["train_dataset", "eval_dataset"])
@pytest.mark.parametrize("as_stream", [False, True])
def test_all_missing_columns_are_named_before_anything_is_loaded(split, as_stream, tmp_path):
    lacking = rows().rename_columns({"prompt": "question"}).remove_columns(["teacher_prompt", "reference"])
    given = {"train_dataset": rows(), split: lacking.to_iterable_dataset() if as_stream else lacking}
    ways = "`prompt` or `prompt_ids`, `teacher_prompt` or .*`privileged_context`, `reference` or `reference_ids`"
    with pytest.raises(ValueError, match=f"{split} lack {ways}.*They have: part, question"):
        KnowledgeSeedingTrainer("no/such-model", args=KnowledgeSeedingConfig(str(tmp_path), **OPTIONS), **given)


def test_columns_that_a_reward_needs_are_named_before_anything_is_loaded(tmp_path):
    def needy(completions, difficulty, **columns):
        return [0.0] * len(completions)

    args = KnowledgeSeedingConfig(str(tmp_path), **OPTIONS, alpha=0.0)
    with pytest.raises(ValueError, match=r"lack `difficulty` \(for the reward 'needy'\)"):
        KnowledgeSeedingTrainer("no/such-model", guard(needy), args, rows())
    with pytest.raises(ValueError, match=r"lack `reference` \(for the reward 'imitation'\)\."):
        KnowledgeSeedingTrainer("no/such-model", None, args, rows().remove_columns("reference"))


@pytest.mark.parametrize("name", ["prompt", "reference"])
def test_a_row_without_a_value_is_named(name, tmp_path):
    some = Dataset.from_list([{**row, name: None if i else row[name]} for i, row in enumerate(rows(4))])
    with pytest.raises(ValueError, match=f"A row has no `{name}` or `{name}_ids`"):
        trainer(tmp_path, data=some).train()


def test_grpos_arguments_are_refused_with_the_way_out(tmp_path):
    with pytest.raises(ValueError, match=r"args is a GRPOConfig.*KnowledgeSeedingConfig\(\.\.\.\)"):
        KnowledgeSeedingTrainer("no/such-model", args=GRPOConfig(str(tmp_path), **OPTIONS), train_dataset=rows())


def test_vllm_of_trl_is_refused_with_the_way_out(tmp_path):
    args = KnowledgeSeedingConfig(str(tmp_path), **OPTIONS, use_vllm=True)
    with pytest.raises(ValueError, match=r"--rollout\.engine vllm"):
        KnowledgeSeedingTrainer("no/such-model", args=args, train_dataset=rows())


def losses(tmp_path, data, **options):
    t = trainer(tmp_path, data=data, reward_funcs=None, max_steps=2, **options)
    t.train()
    return logged(t, "loss")


def with_ids(row):
    tokenizer = tiny_tokenizer()
    ids = tokenizer(row["reference"], add_special_tokens=False)["input_ids"]
    return {"prompt_ids": tokenizer(row["prompt"])["input_ids"], "reference_ids": [*ids, 2]}


@pytest.mark.parametrize("name", ["torch", "numpy"])
def test_a_formatted_data_set_trains_like_a_plain_one(name, tmp_path):
    data = rows(8).map(with_ids)
    assert losses(tmp_path, data.with_format(name)) == losses(tmp_path, data)


def test_a_stream_trains_like_a_data_set(tmp_path):
    plain = losses(tmp_path, rows(16), shuffle_dataset=False)
    assert losses(tmp_path, rows(16).to_iterable_dataset(), shuffle_dataset=False) == plain


def test_rows_without_a_part_are_about_a_memory(tmp_path):
    memory = rows(8).map(lambda row: {"part": "memory"})
    some = Dataset.from_list([{**row, "part": None if i % 2 else "memory"} for i, row in enumerate(memory)])
    assert losses(tmp_path, some) == losses(tmp_path, memory)
    with pytest.raises(ValueError, match="`part` 'other'; it must be one of memory, dream, general, earlier"):
        losses(tmp_path, memory.map(lambda row: {"part": "other"}))


def test_some_rows_may_come_as_token_ids(tmp_path):
    data = [{**row, "prompt_ids": None, "reference_ids": None} for row in rows(8)]
    ids = [{**row, **with_ids(row), "prompt": None, "reference": None} for row in data]
    mixed = [(row, ids[i])[i % 2] for i, row in enumerate(data)]
    assert losses(tmp_path, Dataset.from_list(mixed)) == losses(tmp_path, Dataset.from_list(data))


def as_parts(text):
    half = text.index(" ") + 1
    return [{"type": "text", "text": text[:half]}, {"type": "text", "text": text[half:]}]


def test_content_may_be_given_as_parts(tmp_path):
    def conversation(row, content):
        return {
            "prompt": [{"role": "user", "content": content(row["prompt"])}],
            "teacher_prompt": [{"role": "user", "content": content(row["teacher_prompt"])}],
            "reference": [{"role": "assistant", "content": content(row["reference"])}],
        }

    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ 'the ' + m['content'] + ' ' }}{% endfor %}"
    found = [
        losses(tmp_path, Dataset.from_list([conversation(r, content) for r in rows(8)]), processing_class=tokenizer)
        for content in (str, as_parts)
    ]
    assert found[0] == found[1]


def test_a_reference_with_an_image_is_refused(tmp_path):
    image = [{"role": "assistant", "content": [{"type": "image"}]}]
    with pytest.raises(ValueError, match="only text can be taught"):
        losses(tmp_path, Dataset.from_list([{**row, "reference": image} for row in rows(4)]))


def test_a_row_without_any_reward_leaves_no_text_in_the_log(tmp_path, caplog):
    def abstain(completion_ids, **kwargs):
        return [None] * len(completion_ids)

    trainer(tmp_path, max_steps=1, reward_funcs=abstain).train()
    assert "Mira" not in caplog.text


def test_a_stop_string_may_be_given_as_text(tmp_path):
    texts = []

    def keep(completions, **kwargs):
        texts.extend(completions)
        return [0.0] * len(completions)

    data = of_memories(rows(4)).map(lambda row: {"stop": "cat"})
    trainer(tmp_path, data=data, reward_funcs=keep, max_steps=6, temperature=3.0).train()
    assert all("cat" not in text for text in texts)
    assert any("and" in text or "the" in text for text in texts)  # by its letters, "cat" would end these


@pytest.mark.parametrize("stop", [3, ["cat", ""], [None]])
def test_a_stop_that_is_no_text_is_refused(stop):
    with pytest.raises(ValueError, match=r"A row has the `stop` .*; it must be a string or a list of strings"):
        normalize([{"prompt": "the cat", "stop": stop}])


def test_a_rollout_that_ends_at_a_stop_string_is_not_truncated(tmp_path):
    """It has no end-of-sequence token, by which TRL tells."""
    data = of_memories(rows(4)).map(lambda row: {"stop": WORDS})
    t = trainer(tmp_path, data=data, mask_truncated_completions=True, temperature=3.0, max_completion_length=30)
    batch = first_batch(t)
    lengths = batch["completion_mask"].sum(1)
    assert lengths.max() < 30 and (lengths > 0).all()
    assert batch["num_items_in_batch"] == lengths.sum()
    assert t._metrics["train"]["completions/clipped_ratio"] == [0.0]


def test_rows_without_a_rollout_count_in_no_figure(tmp_path):
    t = trainer(tmp_path, max_completion_length=8)  # half of the rows are general
    batch = first_batch(t)
    is_general = batch["part"] == PARTS.index("general")
    lengths = batch["completion_mask"].sum(1)
    assert is_general.any() and (lengths[is_general] == 0).all()
    assert batch["num_items_in_batch"] == lengths.sum()
    of_memory, metrics = lengths[~is_general].float(), t._metrics["train"]
    assert metrics["completions/mean_length"] == [pytest.approx(of_memory.mean().item())]
    assert metrics["completions/min_length"] == [of_memory.min().item()]


@pytest.mark.filterwarnings("ignore:You are using 'rollout_func'")
def test_a_rollout_func_does_not_take_what_only_our_generation_does(tmp_path):
    def roll_out(prompts, trainer):
        raise AssertionError("not called")

    data = of_memories(rows(4)).map(lambda row: {"stop": ["cat"]})
    args = KnowledgeSeedingConfig(str(tmp_path), **OPTIONS, rollout_start=0.0)
    t = KnowledgeSeedingTrainer(
        student(),
        length_reward,
        args=args,
        train_dataset=data,
        processing_class=tiny_tokenizer(),
        rollout_func=roll_out,
    )
    with pytest.raises(ValueError, match=r"rollout_func: rows have `stop`, .* generate without rollout_func"):
        t.train()


def test_the_default_reward_does_not_count_the_end_of_a_sequence(tmp_path):
    t = trainer(tmp_path, reward_funcs=None)
    end, says_all = t.processing_class.eos_token_id, [5, 6]
    rewards = t.reward_funcs[0](
        prompts=["", ""],
        completions=["a b", ""],
        completion_ids=[says_all, [end]],
        reference=["a b", "a b"],
        reference_ids=[[*says_all, end], [*says_all, end]],
    )
    assert rewards == [1.0, 0.0]


def test_general_rows_of_trls_vllm_count_for_nothing(tmp_path):
    """Each process asks it for all of its rows, since it divides them equally."""
    asked, seen = [], []

    class Answers:
        def sync_weights(self):
            pass

        def generate(self, prompts, images, num_generations, profiler):
            asked.append(len(prompts))
            return prompts, [[7, 8, 9]] * len(prompts), [[[-2.0]] * 3] * len(prompts), None

    def keep(completion_ids, part, **kwargs):
        seen.extend(zip(part, map(tuple, completion_ids), strict=True))
        return [0.0] * len(part)

    t = trainer(tmp_path, reward_funcs=keep)
    t.use_vllm, t.vllm_mode, t.vllm_generation, t._last_loaded_step = True, "server", Answers(), -1
    batch = first_batch(t)
    assert asked == [len(batch["part"])]
    assert set(seen) == {("memory", (7, 8, 9)), ("general", (t.processing_class.eos_token_id,))}
    of_general = batch["sampling_per_token_logps"][batch["part"] == PARTS.index("general")]
    assert (of_general == 0).all()
