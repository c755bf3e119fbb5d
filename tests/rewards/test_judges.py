"""Judges on tiny models made here: their numbers are those of the model, computed another way."""

import json
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    PreTrainedTokenizerFast,
)

from sleep_trl.rewards import RewardError, make_judge
from sleep_trl.rewards.judges import (
    ClassifierJudge,
    LanguageModelJudge,
    LexicalJudge,
    SentenceTransformerJudge,
)
from tests.tiny import tiny_model, tiny_tokenizer

WORDS = "the cat of mira is called tolu and it eats hats".split()
BERT = {
    "vocab_size": 16,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 24,
    "initializer_range": 0.5,
}
CANDIDATES = ["tolu", "hats and hats", "it eats"]
REFERENCES = ["tolu", "mira", "the cat eats"]
CONTEXTS = ["the cat is called ", "it eats ", ""]


def bert_tokenizer(max_length=24) -> PreTrainedTokenizerFast:
    """Make a word-level tokenizer with BERT's `[CLS] A [SEP] B [SEP]`."""
    entries = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS]
    tokenizer = Tokenizer(WordLevel({w: i for i, w in enumerate(entries)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    special = {
        "pad_token": "[PAD]",
        "unk_token": "[UNK]",
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
    }
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=max_length, **special)


@pytest.fixture
def classifier(tmp_path):
    """Return a function that saves a tiny pair classifier and returns its folder and itself."""

    def save(**config):
        torch.manual_seed(0)
        model = BertForSequenceClassification(BertConfig(**BERT, **config)).eval()
        model.save_pretrained(tmp_path / "classifier")
        bert_tokenizer().save_pretrained(tmp_path / "classifier")
        return str(tmp_path / "classifier"), model

    return save


def one_by_one(model, first, second):
    """Return the logits of each pair, without batches and padding."""
    tokenizer = bert_tokenizer()
    with torch.no_grad():
        return [model(**tokenizer(a, b, return_tensors="pt")).logits[0] for a, b in zip(first, second, strict=True)]


NAMES = {"id2label": {0: "other", 1: "unsure", 2: "same"}}


def test_classifier_gives_the_models_probabilities(classifier) -> None:
    folder, model = classifier(**NAMES, label2id={v: k for k, v in NAMES["id2label"].items()})
    logits = one_by_one(model, REFERENCES, CANDIDATES)
    for label in ("same", 2):
        judge = ClassifierJudge(folder, label=label, batch_size=2, device="cpu")
        expected = [row.softmax(-1)[2].item() for row in logits]
        assert judge.probabilities(REFERENCES, CANDIDATES) == pytest.approx(expected, abs=1e-5)
    assert max(expected) - min(expected) > 0.01
    assert judge([], [], None) == []


def test_classifier_asks_both_ways_behind_the_context(classifier) -> None:
    folder, model = classifier(num_labels=2)
    said = [c + t for c, t in zip(CONTEXTS, CANDIDATES, strict=True)]
    meant = [c + t for c, t in zip(CONTEXTS, REFERENCES, strict=True)]
    there = [row.softmax(-1)[0].item() for row in one_by_one(model, meant, said)]
    back = [row.softmax(-1)[0].item() for row in one_by_one(model, said, meant)]
    pairs = list(zip(there, back, strict=True))
    row = max(range(3), key=lambda i: there[i] - back[i])
    threshold = sum(pairs[row]) / 2  # between the two ways of one pair
    assert there[row] > threshold > back[row]
    one = ClassifierJudge(folder, label=0, threshold=threshold, both_ways=False, device="cpu")
    both = ClassifierJudge(folder, label=0, threshold=threshold, device="cpu")
    assert one(CANDIDATES, REFERENCES, CONTEXTS) == [float(a >= threshold) for a, _ in pairs]
    assert both(CANDIDATES, REFERENCES, CONTEXTS) == [float(min(p) >= threshold) for p in pairs]
    assert both(CANDIDATES, REFERENCES, CONTEXTS)[row] == 0.0


def test_classifier_with_one_output_is_read_through_a_sigmoid(classifier) -> None:
    folder, model = classifier(num_labels=1)
    expected = [row.sigmoid().item() for row in one_by_one(model, REFERENCES, CANDIDATES)]
    judge = ClassifierJudge(folder, device="cpu")
    assert judge.probabilities(REFERENCES, CANDIDATES) == pytest.approx(expected, abs=1e-5)


def test_classifier_refuses(classifier) -> None:
    folder, _ = classifier(num_labels=2)
    with pytest.raises(ValueError, match=r"no label 'same'; it has: 0 \(LABEL_0\), 1 \(LABEL_1\)"):
        ClassifierJudge(folder, label="same").load()
    with pytest.raises(ValueError, match="no label 2"):
        ClassifierJudge(folder, label=2).load()
    with pytest.raises(ValueError, match="threshold is 1"):
        ClassifierJudge(folder, threshold=1)
    with pytest.raises(ValueError, match="batch_size is 0"):
        ClassifierJudge(folder, batch_size=0)
    # 2 + 20 words and 3 special tokens
    with pytest.raises(RewardError, match="pair 1 has 25 tokens and the judge's model reads 24"):
        ClassifierJudge(folder, device="cpu")(["it", "it it"], ["it", "it " * 20], None)


def test_pickled_weights_are_refused(classifier, tmp_path) -> None:
    folder, model = classifier(num_labels=2)
    (tmp_path / "classifier" / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "classifier" / "pytorch_model.bin")
    with pytest.raises(OSError, match="safetensors"):
        ClassifierJudge(folder).load()


TEMPLATE = "{{ reference }} and {{ candidate }} is it"


@pytest.fixture
def lm(tmp_path):
    """Save a tiny causal LM whose words are those of `tests.tiny`; return its folder and itself."""
    model = tiny_model("llama")
    model.save_pretrained(tmp_path / "lm")
    tiny_tokenizer().save_pretrained(tmp_path / "lm")
    return str(tmp_path / "lm"), model


def test_lm_compares_the_next_token(lm) -> None:
    folder, model = lm
    tokenizer = tiny_tokenizer()
    candidates, references = ["Tolu", "hats and hats", "it eats"], ["Tolu", "Mira", "the cat eats"]
    contexts = ["the cat is called ", "it eats ", ""]
    yes, no = tokenizer.convert_tokens_to_ids(["cat", "boat"])
    expected = []
    for candidate, reference, context in zip(candidates, references, contexts, strict=True):
        question = f"{context}{reference} and {context}{candidate} is it"
        with torch.no_grad():
            logits = model(**tokenizer(question, return_tensors="pt")).logits[0, -1]
        expected.append((logits[yes] - logits[no]).item())
    words = {"yes": " cat", "no": " boat"}
    judge = LanguageModelJudge(folder, TEMPLATE, **words, batch_size=3, device="cpu")
    pairs = zip(candidates, references, contexts, strict=True)
    questions = [f"{c}{r} and {c}{a} is it" for a, r, c in pairs]
    assert judge.margins(questions) == pytest.approx(expected, abs=1e-4)  # also with padding
    assert judge(candidates, references, contexts) == [float(margin > 0) for margin in expected]
    turned = LanguageModelJudge(folder, TEMPLATE, yes=" boat", no=" cat", device="cpu")
    assert turned(candidates, references, contexts) == [float(m < 0) for m in expected]
    assert judge([], [], None) == []


def test_lm_refuses(lm) -> None:
    folder, _ = lm
    LanguageModelJudge(folder, yes="cat", no="boat").check()
    with pytest.raises(ValueError, match="begin with the same token"):
        LanguageModelJudge(folder, yes="cat", no="cat eats").check()
    with pytest.raises(ValueError, match="no token for ' yes'"):
        LanguageModelJudge(folder).load()
    with pytest.raises(ValueError, match="begin with the same token"):
        LanguageModelJudge(folder, yes="cat", no="cat eats").load()
    for template, message in [
        ("{{ reference }}", "does not use candidate"),
        ("{{ reference }} {{ candidate }} {{ answer }}", "uses answer; there are: reference"),
        ("{{ reference", "does not parse"),
    ]:
        with pytest.raises(ValueError, match=message):
            LanguageModelJudge(folder, template)
    judge = LanguageModelJudge(folder, TEMPLATE, yes="cat", no="boat", device="cpu")
    # 1 + 200 + 3 words of the question
    with pytest.raises(RewardError, match="pair 0 has 204 tokens and the judge's model reads 128"):
        judge(["it " * 200], ["it"], None)


def test_sentence_transformer_gives_the_cosine(tmp_path) -> None:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Pooling, Transformer

    torch.manual_seed(0)
    model = BertModel(BertConfig(**BERT)).eval()
    model.save_pretrained(tmp_path / "bert")
    bert_tokenizer().save_pretrained(tmp_path / "bert")
    modules = [Transformer(str(tmp_path / "bert")), Pooling(16, pooling_mode="mean")]
    SentenceTransformer(modules=modules, device="cpu").save(str(tmp_path / "embedder"))

    def embed(text):
        with torch.no_grad():
            inputs = bert_tokenizer()(text, return_tensors="pt")
            return model(**inputs).last_hidden_state[0].mean(0)

    expected = [
        torch.cosine_similarity(embed(c + a), embed(c + r), dim=0).item()
        for a, r, c in zip(CANDIDATES, REFERENCES, CONTEXTS, strict=True)
    ]
    threshold = (expected[1] + expected[2]) / 2
    folder = str(tmp_path / "embedder")
    judge = SentenceTransformerJudge(folder, threshold=threshold, batch_size=2, device="cpu")
    judge.check()
    said = [c + a for a, c in zip(CANDIDATES, CONTEXTS, strict=True)]
    meant = [c + r for r, c in zip(REFERENCES, CONTEXTS, strict=True)]
    assert judge.cosines(said, meant) == pytest.approx(expected, abs=1e-5)
    verdicts = judge(CANDIDATES, REFERENCES, CONTEXTS)
    assert verdicts == [float(cosine >= threshold) for cosine in expected]
    assert verdicts[0] == 1.0
    assert 0.0 in verdicts
    assert judge([], [], None) == []
    with pytest.raises(RewardError, match="pair 0 has 32 tokens and the judge's model reads 24"):
        judge(["it " * 30], ["it"], None)


def test_sentence_transformer_missing_says_what_to_install(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    judge = make_judge({"name": "sentence_transformer", "params": {"model": "some/model"}})
    with pytest.raises(ValueError, match=r"pip install 'sleep-trl\[judges\]'"):
        SentenceTransformerJudge("some/model").check()
    with pytest.raises(ImportError, match=r"pip install 'sleep-trl\[judges\]'"):
        judge(["a"], ["a"], None)
    with pytest.raises(ValueError, match=r"threshold is 1\.5"):
        SentenceTransformerJudge("some/model", threshold=1.5)


def test_lexical_modes() -> None:
    candidates = ["The Cat!", "a red cat ran", "red cats"]
    references = ["cat", "red cat", "red cat"]
    assert LexicalJudge()(candidates, references, None) == [1.0, 0.0, 0.0]
    assert LexicalJudge("contains")(candidates, references) == [1.0, 1.0, 0.0]
    # F1: 1, 2*2/(3+2) = 0.8, 2*1/(2+2) = 0.5
    assert LexicalJudge("f1", threshold=0.8)(candidates, references) == [1.0, 1.0, 0.0]
    assert LexicalJudge("f1", threshold=0.81)(candidates, references) == [1.0, 0.0, 0.0]
    with pytest.raises(ValueError, match="mode is 'fuzzy'; allowed: exact, contains, f1"):
        LexicalJudge("fuzzy")
    with pytest.raises(ValueError, match="threshold is 0"):
        LexicalJudge("f1", threshold=0)


PAIRS = [json.loads(line) for line in (Path(__file__).parent / "judge_pairs.jsonl").read_text("utf-8").splitlines()]


@pytest.mark.parametrize("mode", ["exact", "contains"])
def test_lexical_judge_on_labelled_pairs(mode) -> None:
    verdicts = LexicalJudge(mode)([pair["candidate"] for pair in PAIRS], [pair["reference"] for pair in PAIRS])
    false_accepts, false_rejects = Counter(), Counter()
    for verdict, pair in zip(verdicts, PAIRS, strict=True):
        false_accepts[pair["kind"]] += verdict > pair["label"]
        false_rejects[pair["kind"]] += verdict < pair["label"]
    # `contains` accepts what a reply adds: "copper and zinc", "not under the roof"
    accepted = {"extra": 7, "negation": 1, "language": 2, "thai": 2, "chinese": 1, "korean": 1}
    for kind in false_accepts:
        assert false_accepts[kind] <= (accepted.get(kind, 0) if mode == "contains" else 0), kind
    rejected = {"case": 0, "sign": 1, "decimal": 4, "symbol": 7, "unit": 10, "version": 4, "partial": 0, "empty": 0}
    contained = {
        "sentence": 0,
        "extra": 0,
        "korean": 3,
        "hindi": 1,
        "thai": 2,
        "chinese": 4,
        "japanese": 4,
        "arabic": 2,
    }
    for kind, bound in (rejected | (contained if mode == "contains" else {})).items():
        assert false_rejects[kind] <= bound, kind
