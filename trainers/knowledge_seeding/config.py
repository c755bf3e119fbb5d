"""Arguments of [`KnowledgeSeedingTrainer`]."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from trl import GRPOConfig

from sleep_trl.config.sections import MemoryConfig, SeedingConfig

from ..options import check_options, run_option


@dataclass
class KnowledgeSeedingConfig(GRPOConfig):
    """
    Configuration of [`KnowledgeSeedingTrainer`]: [`~trl.GRPOConfig`] and the parameters of Knowledge Seeding (arXiv
    2606.03979, section 3.3).

    Parameters:
        alpha (`float`, *optional*, defaults to `0.7`):
            Weight of the divergence, in [0, 1]; `1 - alpha` is the weight of GRPO's policy loss. At `0` the trainer is
            GRPO, at `1` it is distillation.
        lmbda (`float`, *optional*, defaults to `0.5`):
            Weight of the divergence on the student's rollouts, in [0, 1]; `1 - lmbda` is its weight on the references
            (GKD's λ, taken as a weight instead of a probability, which has the same mean and less variance).
        rollout_start (`float`, *optional*, defaults to `0.9`):
            Share of the steps before rollouts begin, in [0, 1]. Until then the loss is `alpha` times the divergence on
            the references, and no reward is computed (ours: a student that knows nothing has little to say). With
            `lmbda=1` rollouts begin at once.
        divergence_beta (`float`, *optional*, defaults to `0.0`):
            Generalized Jensen-Shannon coefficient, in [0, 1]: `0` is forward KL(teacher ‖ student), `1` reverse KL. GKD
            calls it `beta`, which in GRPO is the weight of the KL to a reference model.
        sft_weight (`float`, *optional*):
            Share of the cross-entropy in what is learned from the references of memories and dreams, in [0, 1]; the
            rest is the divergence (ours; hard labels in distillation: arXiv 1503.02531). Default: 1 if the model
            teaches itself, 0 with a `teacher_model`.
        gamma (`float`, *optional*, defaults to `0.5`):
            Weight of the judge in the default imitation reward, in [0, 1] (Eq. 3).
        z0 (`float`, *optional*):
            Levenshtein distance above which the other part of that reward is 0 (Eq. 4), in tokens, or as a share of the
            longer sequence if below 1.
        replay_weight (`float`, *optional*, defaults to `8.0`):
            Weight of the self-replay rows (those whose `part` is neither `"memory"` nor `"dream"`), in divergence and
            drift (ours).
        drift_weight (`float`, *optional*, defaults to `0.0`):
            Weight of the drift of the last hidden states on self-replay rows, added to their divergence: squared
            distance from the model's own states as a teacher, divided by their squared length (ours).
        expert_dropout (`float`, *optional*, defaults to `0.0`):
            Probability with which an optimizer step leaves out each earlier expert of the memory, for teacher and
            student alike, so that a new expert does not depend on them and each can be dropped (ours).
        reference_passes (`int`, *optional*, defaults to `1`):
            Forward passes over which the references of a batch are spread, by length. More passes waste less on padding
            where lengths differ a lot.
        expert_width (`int`, *optional*, defaults to `64`):
            Width of the expert that is activated if the model comes without a memory.
        teacher_prompt_template (`str`, *optional*, defaults to `"{prompt}\\n\\n{privileged_context}"`):
            How the teacher's prompt is made from `prompt` and `privileged_context`, as in TRL's `SDFTConfig`.
        teacher_model_init_kwargs (`str` or `dict[str, Any]`, *optional*):
            Keyword arguments for `from_pretrained` if `teacher_model` is a name, as in TRL's `DistillationConfig`.
        learning_rate (`float`, *optional*, defaults to `2e-3`):
            Peak learning rate. The paper's 5e-6 is for a LoRA of rank 64 and scale 2; a new expert starts at zero.
    """

    _VALID_DICT_FIELDS = [*GRPOConfig._VALID_DICT_FIELDS, "teacher_model_init_kwargs"]

    alpha: float = run_option(SeedingConfig, "alpha")
    lmbda: float = run_option(SeedingConfig, "lmbda")
    rollout_start: float = run_option(SeedingConfig, "rollout_start")
    divergence_beta: float = run_option(SeedingConfig, "divergence_beta")
    sft_weight: float | None = run_option(SeedingConfig, "sft_weight")
    gamma: float = run_option(SeedingConfig, "gamma")
    z0: float | None = run_option(SeedingConfig, "z0")
    replay_weight: float = run_option(SeedingConfig, "replay_weight")
    drift_weight: float = run_option(SeedingConfig, "drift_weight")
    expert_dropout: float = run_option(SeedingConfig, "expert_dropout")
    reference_passes: int = run_option(SeedingConfig, "reference_passes")
    expert_width: int = run_option(MemoryConfig, "width")
    teacher_prompt_template: str = field(
        default="{prompt}\n\n{privileged_context}",
        metadata={"help": "How the teacher's prompt is made from the prompt and the privileged context."},
    )
    teacher_model_init_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Keyword arguments for from_pretrained if the teacher is given by name."}
    )
    learning_rate: float = run_option(SeedingConfig, "learning_rate")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_options(self)
        for name in ("{prompt}", "{privileged_context}"):
            if name not in self.teacher_prompt_template:
                raise ValueError(f"teacher_prompt_template must contain {name}, got {self.teacher_prompt_template!r}.")
