"""Arguments of [`KnowledgeSeedingTrainer`]."""

from __future__ import annotations

from dataclasses import dataclass, field

from trl import GRPOConfig


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
            (GKD's λ, taken as a weight and not as a probability, which has the same mean and less variance).
        divergence_beta (`float`, *optional*, defaults to `0.0`):
            Generalized Jensen-Shannon coefficient, in [0, 1]: `0` is forward KL(teacher ‖ student), `1` reverse KL. GKD
            calls it `beta`, which in GRPO is the weight of the KL to a reference model.
        gamma (`float`, *optional*, defaults to `0.5`):
            Weight of the judge in the default imitation reward, in [0, 1] (Eq. 3).
        z0 (`float`, *optional*):
            Levenshtein distance above which the other part of that reward is 0 (Eq. 4), in tokens, or as a share of the
            longer sequence if below 1.
        replay_weight (`float`, *optional*, defaults to `1.0`):
            Weight of the rows whose `part` is not `"memory"`, in divergence and drift (ours).
        drift_weight (`float`, *optional*, defaults to `0.0`):
            Weight of the drift of the last hidden states on those rows, beside their divergence: squared distance from
            the model's own as a teacher, by squared length (ours).
        expert_dropout (`float`, *optional*, defaults to `0.0`):
            Probability with which an optimizer step leaves out each settled expert of the memory, for teacher and
            student alike, so that a new expert does not lean on them and each can be dropped (ours).
        reference_passes (`int`, *optional*, defaults to `1`):
            Forward passes over which the references of a batch are spread, by length: more of them pad less where
            lengths differ much.
        expert_width (`int`, *optional*, defaults to `64`):
            Width of the expert that is activated when the model comes without a memory.
        learning_rate (`float`, *optional*, defaults to `2e-4`):
            Peak learning rate. The paper's 5e-6 is for a LoRA of rank 64 and scale 2; a new expert starts at zero.
    """

    alpha: float = field(default=0.7, metadata={"help": "Weight of the divergence, in [0, 1]."})
    lmbda: float = field(default=0.5, metadata={"help": "Weight of the divergence on rollouts, in [0, 1]."})
    divergence_beta: float = field(default=0.0, metadata={"help": "0: forward KL, 1: reverse KL, between: JSD."})
    gamma: float = field(default=0.5, metadata={"help": "Weight of the judge in the imitation reward, in [0, 1]."})
    z0: float | None = field(default=None, metadata={"help": "Edit distance above which its reward is 0."})
    replay_weight: float = field(default=1.0, metadata={"help": "Weight of the self-replay rows, against 1."})
    drift_weight: float = field(default=0.0, metadata={"help": "Weight of the drift of hidden states there."})
    expert_dropout: float = field(default=0.0, metadata={"help": "Chance that a step leaves a settled expert out."})
    reference_passes: int = field(default=1, metadata={"help": "Passes, by length, that read the references."})
    expert_width: int = field(default=64, metadata={"help": "Width of an expert made for a model without a memory."})
    learning_rate: float = field(default=2e-4, metadata={"help": "Peak learning rate."})

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("alpha", "lmbda", "divergence_beta", "gamma"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name} must be between 0 and 1, got {getattr(self, name)}.")
        if not 0.0 <= self.expert_dropout < 1.0:
            raise ValueError(f"expert_dropout must be at least 0 and below 1, got {self.expert_dropout}.")
        for name in ("replay_weight", "drift_weight"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}.")
        if self.reference_passes < 1:
            raise ValueError(f"reference_passes must be at least 1, got {self.reference_passes}.")
        if self.z0 is not None and self.z0 <= 0:
            raise ValueError(f"z0 must be positive (or None for no limit), got {self.z0}.")
