import math

import pytest
import torch
import torch.nn.functional as F

from sleep_trl.batched_lora import LoraJob, LoraSpec, LoraTraining, train_adapters, using_adapters
from sleep_trl.data.prompts import Prompter
from sleep_trl.dreams import answerers
from sleep_trl.dreams.answerers import Answerers
from sleep_trl.dreams.evaluator import DreamEvaluator, SignificanceTest
from sleep_trl.dreams.gradients import Text
from sleep_trl.dreams.measure import Custom, HeldoutLoss, Questions, Task
from sleep_trl.dreams.quiz import write_quiz
from sleep_trl.evaluation.recall import QAItem
from sleep_trl.rollout import Completion, TransformersEngine
from tests.tiny import tiny_model, tiny_tokenizer

QUESTIONS = (QAItem("the cat of Mira", ("Tolu",)), QAItem("the boat of Ben", ("sleeps",)))


@pytest.fixture
def engine():
    return TransformersEngine(tiny_model(), tiny_tokenizer(), batch_size=4)


@pytest.fixture
def prompter():
    return Prompter(tiny_tokenizer())


def trained(engine, prompter, text, dream="a"):
    """Train an adapter until it replies with a text to each question."""
    sequences = []
    for item in QUESTIONS:
        ids = prompter(load("question_answer").respond, request=item.question)[0]
        sequences.append((*ids, *prompter.ids(text), 2))
    training = LoraTraining(steps=30, learning_rate=2e-2, batch_size=2)
    (result,) = train_adapters(engine.model, [LoraJob(dream, tuple(sequences))], LoraSpec(rank=4), training)
    return result.adapter


def load(name):
    from sleep_trl.data.templates import Template

    return Template.load(name)


def test_each_row_is_answered_by_its_own_adapter(engine, prompter):
    """Three models in one batch reply as each does alone."""
    adapters = [trained(engine, prompter, "Tolu"), None, trained(engine, prompter, "sleeps", "b")]
    prompts = [prompter(load("question_answer").respond, request=q.question)[0] for q in QUESTIONS] * 3
    owners = [0, 2, 1, 0, 2, 1]
    together = Answerers(engine, adapters).answer(prompts, owners, 6)
    alone = [
        Answerers(engine, [adapters[owner]]).answer([prompt], [0], 6)[0]
        for prompt, owner in zip(prompts, owners, strict=True)
    ]
    assert together == alone
    assert together[0] == "Tolu" and together[1] == "sleeps" and together[2] != together[0]


def test_token_losses_are_those_of_each_adapter(engine, prompter):
    adapters = [None, trained(engine, prompter, "Tolu")]
    texts = [Text.behind([1, 4, 5], [6, 7, 8]), Text.behind([1], [9, 10]), Text.behind([1, 4], [11])]
    losses = Answerers(engine, adapters).token_losses(texts, [0, 1, 0])
    with torch.no_grad():
        logits = engine.model(input_ids=torch.tensor([texts[0].ids])).logits[0]
    expected = F.cross_entropy(logits[2:5], torch.tensor([6, 7, 8]), reduction="none").tolist()
    assert losses[0] == pytest.approx(expected, rel=1e-4)
    assert [len(row) for row in losses] == [3, 2, 1]
    plain = Answerers(engine, [None]).token_losses(texts[1:2], [0])
    assert losses[1] != pytest.approx(plain[0], rel=1e-3)


@pytest.mark.parametrize(("form", "targets"), [("llama", ("q_proj", "lm_head")), ("gemma2", ("q_proj",))])
def test_token_losses_hold_the_logits_of_few_positions(form, targets, monkeypatch):
    """With an adapter of the output layer, and with a model that caps its logits."""
    model, spec = tiny_model(form), LoraSpec(rank=4, targets=targets)
    texts = [Text.behind(range(3, 3 + n), range(20, 20 + n)) for n in (9, 4, 6)]
    jobs = [LoraJob(str(n), (tuple(text.ids),)) for n, text in enumerate(texts[:2])]
    adapters = [*(result.adapter for result in train_adapters(model, jobs, spec, LoraTraining(30, 1e-2))), None]
    expected = []
    for owner, text in enumerate(texts):
        with using_adapters(model, adapters, [owner]):
            logits = model(input_ids=torch.tensor([text.ids])).logits[0, :-1]
        losses = F.cross_entropy(logits, torch.tensor(text.labels[1:]), reduction="none")
        expected.append(losses[len(text.ids) // 2 - 1 :].tolist())
    monkeypatch.setattr(answerers, "TILE", 6 * 97)
    positions = []
    model.get_output_embeddings().register_forward_hook(lambda _, args, y: positions.append(y.numel() // 97))
    found = Answerers(TransformersEngine(model, tiny_tokenizer(), 4), adapters).token_losses(texts, [0, 1, 2])
    for row, losses in zip(found, expected, strict=True):
        assert row == pytest.approx(losses, rel=1e-4)
    assert max(positions) == 6  # two of each text


def test_only_a_dream_that_answers_the_questions_is_rewarded(engine, prompter):
    task = Task("t", "", QUESTIONS[:1] * 4)
    prompt = prompter(load("question_answer").respond, request=QUESTIONS[0].question)[0]
    good = LoraJob("good", ((*prompt, *prompter.ids("Tolu"), 2),))
    bad = LoraJob("bad", ((*prompt, *prompter.ids("sleeps"), 2),))
    broken = LoraJob("broken", ((1, 500),))
    training = LoraTraining(steps=30, learning_rate=2e-2)
    evaluator = DreamEvaluator(
        engine, Questions(prompter, "exact", 4), LoraSpec(rank=4), training, SignificanceTest(repeats=2)
    )
    trials = {trial.id: trial for trial in evaluator.try_out([good, bad, broken], [task] * 3)}
    assert trials["good"].reward == 1 and trials["good"].gain.mean == 1 and trials["good"].learned == 1
    assert trials["bad"].reward == 0
    assert trials["broken"].reward is None and "500" in (trials["broken"].error or "")
    again = {trial.id: trial for trial in evaluator.try_out([broken, good], [task] * 2)}
    assert again["good"] == trials["good"]  # independent of the other dreams


def test_an_uncertain_dream_is_learned_again_and_then_abstains(engine, prompter):
    """One of two questions answered: a bootstrap of two items cannot exclude 0."""
    task = Task("t", "", QUESTIONS)
    dream = LoraJob("half", ((*prompter(load("question_answer").respond, request=QUESTIONS[0].question)[0], 10, 2),))
    assert prompter.ids("Tolu") == [10]
    training = LoraTraining(steps=30, learning_rate=2e-2)
    sign = DreamEvaluator(engine, Questions(prompter, "exact", 4), LoraSpec(rank=4), training, SignificanceTest("sign"))
    careful = DreamEvaluator(
        engine, Questions(prompter, "exact", 4), LoraSpec(rank=4), training, SignificanceTest(repeats=3)
    )
    (certain,), (uncertain,) = sign.try_out([dream], [task]), careful.try_out([dream], [task])
    assert certain.reward == 1 and certain.gain.mean == 0.5
    assert uncertain.reward is None and uncertain.learned == 3 and uncertain.gain.verdict == "uncertain"


def test_heldout_loss_falls_after_learning_the_text(engine, prompter):
    task = Task("t", "", heldout="the cat of Mira is called Tolu and it eats hats")
    ids = prompter.ids(task.heldout)
    training = LoraTraining(steps=30, learning_rate=1e-2)
    (read,) = train_adapters(engine.model, [LoraJob("a", ((1, *ids),))], LoraSpec(rank=4), training)
    measure = HeldoutLoss(prompter, piece=4)
    before, after = measure([task, task], Answerers(engine, [None, read.adapter]))
    assert len(before) == len(after) == math.ceil(len(ids) / 4)
    assert all(a > b for a, b in zip(after, before, strict=True))
    with pytest.raises(ValueError, match="no withheld text"):
        measure([Task("t", "")], Answerers(engine, [None]))


def test_a_custom_measure_asks_its_own_prompts(engine, prompter):
    def says_tolu(task, ask):
        return [float("Tolu" in reply) for reply in ask([f"Question: {task.context}\nAnswer:"] * 2)]

    measure = Custom(says_tolu, prompter, 4)
    tasks = [Task("a", "the cat of Mira"), Task("b", "the cat of Mira")]
    scores = measure(tasks, Answerers(engine, [None, trained(engine, prompter, "Tolu")]))
    assert scores == [[0.0, 0.0], [1.0, 1.0]]


class ScriptedEngine:
    def __init__(self, *answers):
        self.answers = list(answers)

    def generate(self, prompts, sampling, progress=None):
        return [self.answers.pop(0) for _ in prompts]


def completion(text, reason="eos"):
    return Completion([9, 2], text, reason)


def test_a_quiz_keeps_questions_with_consistent_answers(prompter):
    engine = ScriptedEngine(
        *(completion(text) for text in ("Who?", "who?", "Where?", "When?", "What?", "")),
        *(completion(text) for text in ("Ben", "ben.", "Tolu", "Mira", "", "a", "now", "now")),
    )
    written = write_quiz(
        [Task("t", "the cat of Mira")],
        engine,
        prompter,
        questions_per_task=6,
        answers_per_question=2,
        max_new_tokens=8,
    )
    assert [(q.question, q.answers) for q in written.tasks[0].questions] == [("Who?", ("Ben",)), ("What?", ("now",))]
    assert written.dropped == {"duplicate": 1, "empty": 1, "disputed": 1, "unanswered": 1}


def test_an_unknown_metric_and_a_task_without_questions_are_refused(engine, prompter):
    with pytest.raises(ValueError, match="exact, contains, f1"):
        Questions(prompter, "bleu")
    with pytest.raises(ValueError, match="nothing to measure"):
        DreamEvaluator(engine, Questions(prompter)).try_out([LoraJob("a", ((1, 4, 5),))], [Task("t", "")])


def test_a_judge_takes_the_best_of_the_accepted_answers(prompter):
    class Speaker:
        def answer(self, prompts, owners, max_new_tokens):
            return ["the inn Zora", "Mara"]

    asked = []

    def judge(candidates, references, contexts):
        asked.append((candidates, references, contexts))
        return [float(reference in candidate) for candidate, reference in zip(candidates, references, strict=True)]

    tasks = [Task("a", "", (QAItem("Which inn?", ("Ben", "Zora")),)), Task("b", "", (QAItem("Who?", ("Ben",)),))]
    assert Questions(prompter, judge=judge)(tasks, Speaker()) == [[1.0], [0.0]]
    said = ["the inn Zora", "the inn Zora", "Mara"]
    assert asked == [(said, ["Ben", "Zora", "Ben"], ["Which inn? ", "Which inn? ", "Who? "])]
