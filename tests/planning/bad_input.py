"""User errors by name: how to make each, and the message that it must give."""

from __future__ import annotations

import json

from tests.planning.mistakes import (
    MakeOptions,
    begun,
    begun_with_other_options,
    bloom,
    continued,
    continued_on_another_model,
    continued_routed,
    continued_with_other_format,
    continued_without_weights,
    cut_weights,
    file,
    judged,
    missing_shard,
    model_config,
    only_pickle,
    options,
    question,
    rows,
    seeding_not_begun_and_another_length,
    tokenizer_without_end,
    without,
)
from tests.tiny_runs import TEXT

HANDS = "def one_argument(completions):\n    return [0.0] * len(completions)\n\nlimit = 3\n"

CASES: dict[str, tuple[MakeOptions, str]] = {
    # the command line and the file of options
    "no model": (options(model=None), r"^Error: model is missing\. Give it with --model"),
    "unknown option": (
        options(seeding__alfa=1),
        r"--seeding\.alfa is not an option\. Did you mean --seeding\.alpha\?",
    ),
    "config missing": (options(config="no.yaml"), r"no\.yaml does not exist\. Give the path of a Y"),
    "config is not yaml": (
        file("run.yaml", "seeding: {alpha: 0.5", config="run.yaml"),
        r"run\.yaml is not valid YAML: line 1, column \d+: expected ',' or '}', but got '<stream end>'\. Correct it",
    ),
    "config is a list": (
        file("run.yaml", "- seed", config="run.yaml"),
        r"run\.yaml holds a list, but must hold a mapping",
    ),
    "config with a key twice": (
        file("run.yaml", "seed: 1\nseed: 2\n", config="run.yaml"),
        r"line 2, column 1: the key 'seed' is given twice",
    ),
    "config with an unknown key": (
        file("run.yaml", "seeding: {stepps: 5}", config="run.yaml"),
        r"seeding\.stepps is not an option\. Did you mean seeding\.steps\?",
    ),
    "config of another type": (
        file("run.yaml", "seeding: 5", config="run.yaml"),
        r"seeding: 5 was given, but it must be a valid dictionary",
    ),
    "alpha above 1": (
        options(seeding__alpha=1.5),
        r"seeding\.alpha: '1\.5' was given, but it must be less than or equal to 1\. Change it",
    ),
    "text for a number": (options(seeding__steps="many"), r"seeding\.steps: 'many' was given, but"),
    "not a number": (options(seeding__learning_rate="nan"), r"'nan' was given, but .* finite numb"),
    "unknown dtype": (options(dtype="float8"), r"(?s)dtype.*float8.*float32.*bfloat16"),
    "shares above 1": (
        options(dataset__general_share=0.6, dataset__earlier_share=0.6),
        r"general_share \(0\.6\) and earlier_share \(0\.6\) leave no share",
    ),
    "batch that does not divide": (
        options(seeding__per_device_batch_size=5),
        r"seeding: the 32 rollouts of a step .* cannot be split into batches of 5\. Change .*per_device_batch_size",
    ),
    "overlap as long as the window": (
        options(dataset__window=16, dataset__window_overlap=16),
        r"window_overlap \(16\) must be smaller than window \(16\)",
    ),
    "list that is not json": (
        options(dataset__templates='["summary"'),
        r"the value of --dataset\.templates cannot be read: .*Write lists and objects as JSON",
    ),
    "unknown schedule": (
        options(seeding__lr_scheduler_type="cosinus"),
        r"'cosinus' is not a schedule of transformers\. Choose one of linear, cosine",
    ),
    "unknown template": (
        options(dataset__templates='["poem"]'),
        r"no template 'poem'\. Give a built-in one \(question_answer",
    ),
    "template that is not jinja": (
        file("my.j2", "{% if %}", dataset__templates='["my.j2"]'),
        r"template my\.j2 cannot be read",
    ),
    "template with an unknown variable": (
        file("my.j2", "{{ contxt }}", dataset__templates='["my.j2"]'),
        r"'contxt' is undefined\. Correct it",
    ),
    "extra that trl lacks": (
        options(seeding__extra='{"top_kk": 5}'),
        r"'top_kk' is not an argument of TRL's GRPOConfig",
    ),
    "reward of another trainer": (
        options(rewards='["imitation", "improvement"]'),
        r"Reward 'improvement' needs trial_reward, trial_gain, which the rows do not have",
    ),
    "extra that experts lack": (
        options(seeding__extra='{"use_vllm": true}'),
        r"seeding\.extra: 'use_vllm' would sample from a vLLM",
    ),
    "extra that forgets earlier nights": (
        options(seeding__extra='{"beta": 0.1}'),
        r"seeding\.extra: 'beta' would hold the model",
    ),
    "extra that evaluates": (
        options(seeding__extra='{"eval_strategy": "steps"}'),
        r"seeding\.extra: 'eval_strategy' needs an evaluation set, which a night does not have\. Take it out",
    ),
    "extra that repeats batches": (
        options(seeding__extra='{"num_iterations": 0}'),
        r"seeding\.extra: 'num_iterations' would repeat batches within the night's steps, and later memories would not",
    ),
    "extra with a secret": (
        options(seeding__extra='{"hub_token": "hf_secret"}'),
        r"seeding\.extra: 'hub_token' would be written into the run's files as it is; set HF_TOKEN",
    ),
    "extra that shards": (
        options(seeding__extra='{"fsdp": "full_shard"}'),
        r"seeding\.extra: 'fsdp' shards the model, and a night has no FSDP; launch with zero3\.yaml\. Take it out",
    ),
    "extra that follows a reference": (
        options(seeding__extra='{"sync_ref_model": true}'),
        r"seeding\.extra: 'sync_ref_model' needs a reference model",
    ),
    "extra that the run sets": (
        options(seeding__extra='{"max_steps": 5}'),
        r"'max_steps' is set by the run itself\. Take it out and use --seeding\.steps",
    ),
    # memories and the skill probe
    "memories missing": (options(memories="no.jsonl"), r"no\.jsonl does not exist\. Give a \.jsonl"),
    "memories are a list": (
        file("more/one.md", TEXT, memories="more/,docs.jsonl"),
        r"more/,docs\.jsonl is a list, but one .* `sleep-trl wake add more/ docs\.jsonl`.*--nights more/,docs\.jsonl",
    ),
    "general texts missing": (
        options(dataset__general_texts="texts.jsonl"),
        r"dataset\.general_texts: texts\.jsonl does not exist\. Give",
    ),
    "perplexity missing": (
        options(evaluation__perplexity="prose.jsonl"),
        r"evaluation\.perplexity: prose\.jsonl does not exist",
    ),
    "teacher missing": (options(teacher_model='["./taught"]'), r"teacher_model: the folder \./taught does not exist"),
    "several paths at once": (
        options(model="./nowhere", memories="no.jsonl", continue_from="gone", evaluation__skill="no.skill"),
        r"model: .*nowhere.*\nmemories: no\.jsonl.*\nevaluation\.skill: no\.skill.*\ncontinue_from: gone",
    ),
    "memories empty": (file("docs.jsonl", ""), r"docs\.jsonl is empty\. Give at least one row"),
    "memories are no json": (file("docs.jsonl", "hello\n"), r"docs\.jsonl, line 1: not valid JSON"),
    "memories are not utf-8": (
        file("docs.jsonl", b'{"text": "caf\xe9"}'),
        r"docs\.jsonl, line 1: not UTF-8 text .*Convert it",
    ),
    "memory without text": (
        rows({"txt": TEXT}),
        r"line 1: the required key `text` \(or `messages`\) is missing; found `txt`\. Add it",
    ),
    "memory with empty text": (rows({"text": TEXT}, {"text": " "}, strict=True), r"line 2: `text` is empty"),
    "memory that is a number": (rows({"text": 5}), r"line 1: `text` must be a string, not a number"),
    "ids twice": (
        rows({"text": TEXT, "id": "a"}, {"text": TEXT, "id": "a"}, strict=True),
        r"line 2: the id 'a' is already used in docs\.jsonl, line 1",
    ),
    "question without answers": (question(), r"questions\[0\]: `answers` is missing or empty"),
    "folder without texts": (
        file("notes/picture.png", b"", memories="notes"),
        r"folder notes has no documents",
    ),
    "memories in a format of others": (
        file("docs.csv", "text\nx\n", memories="docs.csv"),
        r"docs\.csv is neither a \.jsonl file nor a document",
    ),
    "skill missing": (
        options(evaluation__skill="skill.jsonl"),
        r"evaluation\.skill: skill\.jsonl does not exist\. Give a \.jsonl file",
    ),
    "skill without questions": (
        file("skill.jsonl", '{"text": "x"}', evaluation__skill="skill.jsonl"),
        r"row 'skill\.jsonl:1' has no `questions`",
    ),
    "skill longer than the context": (
        file(
            "skill.jsonl",
            json.dumps({"text": "the cat " * 99, "questions": [{"question": "Who?", "answers": ["cat"]}]}),
            evaluation__skill="skill.jsonl",
        ),
        r"evaluation\.skill: row 'skill\.jsonl:1' has 198 tokens; at most \d+ fit",
    ),
    # the model
    "model folder missing": (options(model="./nowhere"), r"the folder \./nowhere does not exist"),
    "model is a file": (options(model="docs.jsonl"), r"docs\.jsonl is a file\. Give the folder"),
    "folder is not a model": (without("config.json"), r"model has no config\.json, so it holds no mod"),
    "config.json damaged": (file("model/config.json", "{"), r"'model' cannot be used.*valid JSON"),
    "unknown architecture": (model_config(model_type="foo"), r"has model type `foo`"),
    "model with code of its own": (
        model_config(model_type="foo", auto_map={"AutoConfig": "evil.Config"}),
        r"Code in a model repository is never run",
    ),
    "impossible shape": (model_config(num_attention_heads=5), r"'model' cannot be used"),
    "encoder": (
        file("model/config.json", '{"model_type": "bert", "architectures": ["BertForMaskedLM"]}'),
        r"is not a causal language model but BertForMaskedLM\. Give one",
    ),
    "only pickled weights": (only_pickle, r"only as pickle \(\*\.bin\), which can run code"),
    "no weights": (without("model.safetensors"), r"a config\.json but no model\.safetensors"),
    "damaged weights": (cut_weights, r"model\.safetensors is missing or damaged .*Restore it"),
    "missing shard": (missing_shard, r"model-00001-of-00001\.safetensors is missing or damaged"),
    "unknown mlp": (
        bloom,
        r"BloomForCausalLM has 2 layers, but 0 MLPs that can host experts.*add the form of its MLP to",
    ),
    "no tokenizer": (
        without("tokenizer.json", "tokenizer_config.json"),
        r"tokenizer of 'model' does not load .*save_pretrained",
    ),
    "tokenizer without an end": (tokenizer_without_end, r"no end-of-sequence token"),
    "tokenizer of another model": (
        model_config(vocab_size=50),
        r"token id 96, but the model's vocabulary ends at 49",
    ),
    "adapter for a model": (
        continued(model="night1/adapter"),
        r"night1/adapter holds an adapter, not a model\. Give the base model",
    ),
    # what fits the model
    "width as large as the model": (
        options(memory__width=32),
        r"memory\.width: 32 is not low-rank for 'model', whose hidden size is 32",
    ),
    "context beyond the model's": (
        options(max_context=4096),
        r"max_context: 4096 tokens are more than the 128 that 'model' can see",
    ),
    "completions beyond the context": (
        options(seeding__max_completion_length=128),
        r"seeding\.max_completion_length: 128 tokens do not fit the context of 128",
    ),
    "no room for a memory": (
        options(dataset__max_new_tokens=60),
        r"A context of 128 tokens leaves -?\d+ for a memory",
    ),
    "window beyond the context": (
        options(dataset__window=120),
        r"dataset\.window: 120 tokens of a memory do not fit .*; at most \d+ do",
    ),
    # folders of runs
    "output is a file": (options(output_dir="docs.jsonl"), r"docs\.jsonl is a file; give a folder"),
    "output under a file": (options(output_dir="docs.jsonl/run"), r"docs\.jsonl is a file\. Give an"),
    "output is finished": (
        file("run/results.json", "{}"),
        r"run holds a finished run .*--continue_from run",
    ),
    "output is begun": (begun, r"run holds an unfinished run\. Resume it with --resume"),
    "output is somebody's": (
        file("run/model/config.json", "{}"),
        r"run holds model, which a run would overwrite",
    ),
    "nothing to resume": (options(resume=True), r"--resume: run does not hold an interrupted run"),
    "resumed with other options": (
        begun_with_other_options,
        r"begun with other options: seed \(then 1, now 2\).*seeding\.steps \(then 3, now 5\)",
    ),
    "resumed with windows of another size": (
        seeding_not_begun_and_another_length,
        r"begun with other options: seeding\.max_completion_length \(then 4, now 8\)\. Leave them out",
    ),
    "run continued in itself": (
        options(continue_from="run"),
        r"continue_from and output_dir are the same folder",
    ),
    "output has foreign files": (
        file("run/thesis.tex", "x"),
        r"run holds thesis\.tex, and no run\. Give a new or empty folder as --output_dir",
    ),
    "no run to continue": (options(continue_from="gone"), r"continue_from: gone does not exist"),
    "unfinished run to continue": (
        file("half/config.json", "{}", continue_from="half"),
        r"half lacks adapter/memory\.json.*ledger\.jsonl\. Give the output_dir of a run that has",
    ),
    "run to continue without weights": (
        continued_without_weights,
        r"night1 lacks adapter/experts\.safetensors",
    ),
    "run to continue of another format": (continued_with_other_format, r"has format 99; this version"),
    "run to continue of another width": (
        continued(memory__width=4),
        r"memory\.width: 4 was given, but the memory of night1 has width 8",
    ),
    "other routing than before": (
        continued(memory__routing="topk"),
        r"memory\.routing: topk was given, but the memory of night1 has routing dense.*Leave out --memory\.routing",
    ),
    "dense after routed nights": (
        continued_routed(memory__routing="dense"),
        r"memory\.routing: dense was given, but the memory of night1 has routing topk",
    ),
    "other top_k than before": (
        continued_routed(memory__routing="topk", memory__top_k=2),
        r"memory\.top_k: 2 was given, but the memory of night1 has top_k 3",
    ),
    "fewer experts than a token goes to": (
        continued_routed(memory__max_experts=2),
        r"memory\.max_experts: 2 is less than the 3 experts to which each token goes.*Give --memory\.max_experts 3",
    ),
    "top_k without a router": (
        options(memory__top_k=1),
        r"top_k \(1\) requires routing topk; with dense every token goes to every expert",
    ),
    "top_k above max_experts": (
        options(memory__routing="topk", memory__top_k=3),
        r"top_k \(3\) must not be larger than max_experts \(2\)",
    ),
    "run to continue of another model": (
        continued_on_another_model,
        r"belongs to another model than 'model'.*Give the base model again",
    ),
    "memory is full": (
        continued(experts=2),
        r"holds 2 experts and has room for 2\. Give --memory\.max_experts 3 or more",
    ),
    "chunks that do not divide": (
        options(levels__chunks="1000,700"),
        r"levels: Chunk sizes must grow from level to level and each must divide the next, but 700 follows 1000 in",
    ),
    "no room to make room": (
        continued(memory__max_experts=1, levels__when_full="promote"),
        r"has room for 1\. Give --memory\.max_experts 2 or more\. Consolidation needs a free expert too",
    ),
    # rewards
    "reward without a name": (options(rewards='[{"weight": 1}]'), r"rewards\.0\.name is missing"),
    "no rewards": (options(rewards="[]"), r"rewards: .*at least 1 item"),
    "unknown reward": (options(rewards='["imitaton"]'), r"no reward 'imitaton'; registered: .*imit"),
    "reward of a missing file": (options(rewards='["no.py:f"]'), r"no\.py does not exist"),
    "reward of a file without a function": (
        file("hands.py", HANDS, rewards='["imitation", "./hands.py"]'),
        r"rewards\.1\.name: '\./hands\.py' is a file; name a function in it: \./hands\.py:function\. It defines: one",
    ),
    "measure of a file without a function": (
        file("hands.py", HANDS, dream__measure="hands.py"),
        r"dream\.measure: 'hands\.py' is a file; name a function in it: hands\.py:function\. It defines: one_arg",
    ),
    "reward that does not import": (
        file("my.py", "from nothing_of_this_name import f", rewards='["my.py:f"]'),
        r"my\.py does not import: ModuleNotFoundError",
    ),
    "reward of a missing function": (
        file("hands.py", HANDS, rewards='["hands.py:f"]'),
        r"has no function 'f'; its functions: one_argument",
    ),
    "reward that takes no columns": (
        file("hands.py", HANDS, rewards='["hands.py:one_argument"]'),
        r"does not take \*\*kwargs",
    ),
    "reward that is not a function": (
        file("hands.py", HANDS, rewards='["hands.py:limit"]'),
        r"is a int; name a function",
    ),
    "unknown parameter of a reward": (
        options(rewards='[{"name": "imitation", "params": {"gama": 1}}]'),
        r"has no parameter 'gama'; allowed: ",
    ),
    "parameter of a reward that takes none": (
        file("a.py", "def f(completions, reference, **c): ...", rewards='[{"name": "a.py:f", "params": {"a": 1}}]'),
        r"Reward 'a\.py:f' has no parameter 'a'; it takes none\.",
    ),
    "judge without a model": (
        options(rewards=judged("lm", model="./no_judge")),
        r"Judge 'lm': its model '\./no_judge' cannot be read .* Check the name",
    ),
    "embedding judge without a model": (
        options(rewards=judged("sentence_transformer", model="./no_judge")),
        r"Judge 'sentence_transformer': its model '\./no_judge' cannot be read",
    ),
    "judge with another label": (
        options(rewards=judged("classifier", model="model", label="same")),
        r"The classifier has no label 'same'; it has: 0 \(LABEL_0\)",
    ),
    "judge without a word for yes": (
        options(rewards=judged("lm", model="model", yes="jawohl")),
        r"The judge's model has no token for 'jawohl'",
    ),
}
