"""Arguments of [`DreamingTrainer`]."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from trl import GRPOConfig

from sleep_trl.config.dreaming import DreamConfig
from sleep_trl.config.reward import names_a_function
from sleep_trl.config.sections import EvaluationConfig

from ..options import check_options, run_option

MEASURES = ("questions", "heldout_loss")


@dataclass
class DreamingConfig(GRPOConfig):
    """
    Configuration of [`DreamingTrainer`]: [`~trl.GRPOConfig`] and the parameters of dreaming (arXiv 2606.03979, section
    3.4). `num_generations` is the paper's m, the number of dreams per task.

    Parameters:
        improvement (`str`, *optional*, defaults to `"rest_em"`):
            How the dreamer is improved: `"rest_em"` trains on the likelihood of the rewarded dreams (ReST-EM, arXiv
            2312.06585), `"grpo"` uses GRPO's loss.
        rounds (`int`, *optional*, defaults to `2`):
            Rounds of ReST-EM, each an E-step (dream about every task and try the dreams out) followed by an M-step
            (train on the rewarded dreams). Replaces `num_train_epochs`.
        em_epochs (`int`, *optional*, defaults to `1`):
            Epochs over a round's dreams in its M-step. Ours: the paper does not give a number.
        smallest_reward (`float`, *optional*, defaults to `0.0`):
            ReST-EM trains on dreams that improved their task (Eq. 5) and whose summed reward is above this. Whether the
            task improved is decided by the rewards that read the trial, such as `improvement`: each of them has to be
            above 0. If there are none, it is decided by `trial_reward`.

        > Which dreams are tried out

        selection (`str`, *optional*, defaults to `"gradient_norm"`):
            How dreams are ranked, see [`~sleep_trl.dreams.select.Selection`].
        select_top_k (`int`, *optional*, defaults to `4`):
            Number of best dreams per task to try out.
        select_random_k (`int`, *optional*, defaults to `1`):
            Number of further dreams per task to try out, drawn at random among the others (the paper's b).
        random_expert (`bool`, *optional*, defaults to `False`):
            Whether every router also takes one random further expert while dreams are sampled. Requires a memory with
            `routing="topk"`.

        > How a dream is tried out (ignored if the trainer is given an `evaluator`)

        lora_rank (`int`, *optional*, defaults to `8`):
            Rank of the LoRA that learns one dream.
        lora_alpha (`float`, *optional*, defaults to `16.0`):
            LoRA's alpha; the adapter is scaled by `lora_alpha / lora_rank`.
        lora_steps (`int`, *optional*, defaults to `10`):
            Optimizer steps in which the LoRA learns its dream.
        lora_learning_rate (`float`, *optional*, defaults to `1e-3`):
            Learning rate of the LoRA.
        measure (`str`, *optional*, defaults to `"questions"`):
            What the LoRA has to improve (τ): `"questions"`, the answers to the row's `questions`, `"heldout_loss"`, the
            loss on the row's `heldout` text, or a function by its name, `package.module:function` or
            `path/to/file.py:function`; see [`~sleep_trl.dreams.measure.Custom`].
        metric (`str`, *optional*, defaults to `"contains"`):
            How an answer is scored: `"exact"`, `"contains"` or `"f1"`.
        judge (`str` or `dict`, *optional*):
            Judge that scores answers in place of the metric: a name, or `{"name": ..., "params": {...}}`; see
            [`~sleep_trl.rewards.make_judge`].
        max_answer_length (`int`, *optional*, defaults to `32`):
            Maximum length of an answer in tokens.
        test (`str`, *optional*, defaults to `"bootstrap"`):
            When a gain counts: `"bootstrap"` and `"mcnemar"` are paired tests, `"sign"` takes the bare sign (the
            paper). Dreams whose gain is uncertain abstain.
        confidence (`float`, *optional*, defaults to `0.95`):
            Confidence level of the test and of the intervals, in (0, 1).
        repeats (`int`, *optional*, defaults to `1`):
            How often a dream is tried out at most, in total, as long as its gain is uncertain; `1` never tries again.
        trial_batch_size (`int`, *optional*, defaults to `64`):
            Prompts per batch when questions are answered, on one device.
        chunk (`int`, *optional*):
            Dreams tried out at a time, which bounds the memory use. By default all dreams of a round.
        workers (`int`, *optional*, defaults to `0`):
            Number of Ray tasks that try out chunks in parallel; `0` uses this process. Requires `chunk`. The results
            are the same.
        gpus_per_worker (`float`, *optional*, defaults to `0`):
            GPUs per Ray task; `0` runs it on the CPU.
        ray_address (`str`, *optional*):
            `host:port` of a Ray cluster, which then runs as many tasks as fit. By default Ray is started on this
            machine.

        > How the dreamer learns

        learning_rate (`float`, *optional*, defaults to `2e-4`):
            Peak learning rate, as in a night; for an expert or a LoRA. [`~trl.GRPOConfig`]'s 1e-6 is for all weights.
    """

    _VALID_DICT_FIELDS: ClassVar[list[str]] = [*GRPOConfig._VALID_DICT_FIELDS, "judge"]

    improvement: str = run_option(DreamConfig, "improvement")
    rounds: int = field(default=2, metadata={"help": "Rounds of ReST-EM: dream, try out, train on what helped."})
    em_epochs: int = run_option(DreamConfig, "em_epochs")
    smallest_reward: float = run_option(DreamConfig, "smallest_reward")
    selection: str = run_option(
        DreamConfig,
        "selection",
        "How dreams are ranked before they are tried out. gradient_alignment needs the trainer's `reference`.",
    )
    select_top_k: int = run_option(DreamConfig, "top_k")
    select_random_k: int = run_option(DreamConfig, "random_k")
    random_expert: bool = run_option(
        DreamConfig,
        "random_expert",
        "Have every router add one random expert while dreams are sampled. Requires a memory with routing topk.",
    )
    lora_rank: int = run_option(DreamConfig, "lora_rank")
    lora_alpha: float = run_option(DreamConfig, "lora_alpha")
    lora_steps: int = run_option(DreamConfig, "lora_steps")
    lora_learning_rate: float = run_option(DreamConfig, "lora_learning_rate")
    measure: str = field(
        default="questions",
        metadata={"help": f"What a dream has to improve: {', '.join(MEASURES)}, or file.py:function."},
    )
    metric: str = run_option(EvaluationConfig, "metric")
    judge: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Judge that scores answers in place of the metric: a name, or JSON."}
    )
    max_answer_length: int = run_option(EvaluationConfig, "max_new_tokens")
    test: str = run_option(DreamConfig, "test")
    confidence: float = run_option(DreamConfig, "confidence")
    repeats: int = run_option(DreamConfig, "repeats")
    trial_batch_size: int = run_option(
        EvaluationConfig, "batch_size", "Prompts per batch when questions are answered, on one device."
    )
    chunk: int | None = run_option(DreamConfig, "chunk")
    workers: int = run_option(
        DreamConfig,
        "workers",
        "Ray tasks that try out chunks in parallel, each on one core or on gpus_per_worker; a cluster at ray_address "
        "runs as many as fit. 0: this process, one chunk after another. The results are the same.",
    )
    gpus_per_worker: float = run_option(DreamConfig, "gpus_per_worker")
    ray_address: str | None = field(default=None, metadata={"help": "host:port of a Ray cluster for the workers."})
    learning_rate: float = run_option(DreamConfig, "learning_rate")

    def __post_init__(self) -> None:
        check_options(self)
        if self.measure not in MEASURES and not names_a_function(self.measure):
            raise ValueError(
                f"measure must be one of {', '.join(MEASURES)}, got {self.measure!r}. For a measure of your own, name "
                f"a function as file.py:function, or give the trainer an `evaluator`."
            )
        if self.rounds < 1:
            raise ValueError(f"rounds must be at least 1, got {self.rounds}.")
        chosen = self.select_top_k + self.select_random_k
        if self.selection != "all" and not 0 < chosen <= self.num_generations:
            raise ValueError(
                f"select_top_k ({self.select_top_k}) and select_random_k ({self.select_random_k}) select {chosen} of "
                f"{self.num_generations} dreams per task (num_generations); select at least 1 and at most all."
            )
        if self.improvement == "rest_em":
            self.num_train_epochs, self.num_iterations = self.rounds, self.em_epochs
        super().__post_init__()
