"""Arguments of [`DreamingTrainer`]."""

from __future__ import annotations

from dataclasses import dataclass, field

from trl import GRPOConfig


@dataclass
class DreamingConfig(GRPOConfig):
    """
    Configuration of [`DreamingTrainer`]: [`~trl.GRPOConfig`] and the parameters of dreaming (arXiv 2606.03979, section
    3.4). `num_generations` is the paper's m, the dreams of a task.

    Parameters:
        improvement (`str`, *optional*, defaults to `"rest_em"`):
            How the dreamer is improved: `"rest_em"`, the likelihood of the rewarded dreams (ReST-EM, arXiv 2312.06585),
            or `"grpo"`.
        rounds (`int`, *optional*, defaults to `2`):
            E-steps (dream and try out every task) and M-steps (learn the rewarded dreams) of ReST-EM. Takes the place
            of `num_train_epochs`.
        em_epochs (`int`, *optional*, defaults to `1`):
            Passes over the dreams of a round in its M-step. Ours: the paper does not say.
        selection (`str`, *optional*, defaults to `"gradient_norm"`):
            What dreams are selected by before they are tried out, see [`~sleep_trl.dreams.select.Selection`].
        top_k (`int`, *optional*, defaults to `4`):
            Best dreams of a task that are tried out.
        random_k (`int`, *optional*, defaults to `1`):
            Further dreams of a task that are drawn among the others (the paper's b).
        random_expert (`bool`, *optional*, defaults to `False`):
            Whether every router also takes one random further expert while dreams are sampled. Needs a memory with
            `routing="topk"`.
        smallest_reward (`float`, *optional*, defaults to `0.5`):
            Reward above which a dream is learnt by ReST-EM.
    """

    improvement: str = field(default="rest_em", metadata={"help": "rest_em or grpo."})
    rounds: int = field(default=2, metadata={"help": "E-steps and M-steps of ReST-EM."})
    em_epochs: int = field(default=1, metadata={"help": "Passes over a round's dreams in its M-step."})
    selection: str = field(default="gradient_norm", metadata={"help": "What dreams are selected by."})
    top_k: int = field(default=4, metadata={"help": "Best dreams of a task that are tried out."})
    random_k: int = field(default=1, metadata={"help": "Further dreams of a task, drawn among the others."})
    random_expert: bool = field(default=False, metadata={"help": "One random further expert while dreaming."})
    smallest_reward: float = field(default=0.5, metadata={"help": "Reward above which a dream is learnt."})

    def __post_init__(self) -> None:
        if self.improvement not in ("rest_em", "grpo"):
            raise ValueError(f"improvement must be 'rest_em' or 'grpo', got {self.improvement!r}.")
        for name in ("rounds", "em_epochs"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if self.improvement == "rest_em":
            self.num_train_epochs, self.num_iterations = self.rounds, self.em_epochs
        super().__post_init__()
