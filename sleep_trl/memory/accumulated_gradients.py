"""Online consolidation (Eq. 2): a level accumulates gradients over ingested texts, and applies them at its boundary.

**The block of a level (ours)** is an expert that is always in view and that seeding does not train: the paper's MLP of
the level, next to which its experts come and go. Like any new expert it does not change the output at first.

**Computed at night (ours).** No weight changes by day. So gradients computed when the night begins equal those that
would have been computed when the texts were ingested, and no model has to run by day.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file

from ..runs import checksums
from ..runs.folder import AdapterFolder
from .memory import Memory

Gradients = dict[str, torch.Tensor]


@dataclass
class Accumulated:
    """What the levels have accumulated since their last boundary.

    Args:
        tokens (`dict[int, int]`): by level, the number of tokens.
        gradients (`dict[int, dict[str, torch.Tensor]]`): by level and parameter of its block, the sum over these tokens
            of the gradient of the language modeling loss; float32, on the CPU.
    """

    tokens: dict[int, int] = field(default_factory=dict)
    gradients: dict[int, Gradients] = field(default_factory=dict)

    @staticmethod
    def load(folder: Path) -> Accumulated:
        """Read what [`save`] wrote. If there is no file, nothing is accumulated."""
        found, path = Accumulated(), AdapterFolder(folder).accumulated
        if not path.is_file():
            return found
        checksums.check(path)
        with safe_open(path, framework="pt") as file:
            found.tokens = {int(level): count for level, count in json.loads(file.metadata()["tokens"]).items()}
            for key in file.keys():  # noqa: SIM118
                level, _, name = key.partition(".")
                found.gradients.setdefault(int(level), {})[name] = file.get_tensor(key)
        return found

    def save(self, folder: Path) -> None:
        """Write it to a folder by atomic rename. If nothing is accumulated, there is no file."""
        path = AdapterFolder(folder).accumulated
        if not self.tokens:
            checksums.remove(path)
            return
        folder.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".safetensors.partial")
        tensors = {f"{level}.{name}": g for level, named in self.gradients.items() for name, g in named.items()}
        save_file(tensors, partial, metadata={"tokens": json.dumps(self.tokens)})
        checksums.replace(partial, path, is_checked=True)

    def add(self, memory: Memory, texts: Iterable[list[int]]) -> int:
        """Add the gradients of texts to every level that has a block.

        Args:
            memory (`Memory`):
                The memory. Its model, with the experts in view, reads the texts.
            texts (`Iterable[list[int]]`):
                Token ids of each text, no more than the context. All tokens but the first of a text are predicted.

        Returns:
            `int`: the number of tokens predicted.
        """
        count, blocks = 0, memory.blocks
        named = [(level, name, p) for level, at in blocks.items() for name, p in memory.expert_parameters(at)]
        sums = [torch.zeros_like(parameter) for _, _, parameter in named]
        memory.model.eval()
        with memory.differentiating(tuple(blocks.values())), torch.enable_grad():
            for ids in texts:
                loss = summed_loss(memory, torch.tensor([ids], device=memory.model.device))
                found = torch.autograd.grad(loss, [parameter for _, _, parameter in named])
                torch._foreach_add_(sums, found)
                count += len(ids) - 1
        for (level, name, _), added in zip(named, sums, strict=True):
            gradients = self.gradients.setdefault(level, {})
            gradients[name] = gradients[name] + added.cpu() if name in gradients else added.cpu()
        for level in blocks:
            self.tokens[level] = self.tokens.get(level, 0) + count
        return count

    def update(self, level: int, learning_rate: float, max_norm: float) -> Gradients:
        """Return what a boundary adds to the block of a level: a gradient descent step on the mean loss per token.

        Args:
            level (`int`):
                A level with accumulated gradients.
            learning_rate (`float`):
                Learning rate of the step.
            max_norm (`float`):
                Norm above which the mean gradient is clipped.
        """
        mean = {name: gradient / max(1, self.tokens[level]) for name, gradient in self.gradients[level].items()}
        norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in mean.values()]))
        scale = min(1.0, max_norm / max(norm.item(), torch.finfo(torch.float32).tiny))
        return {name: -learning_rate * scale * gradient for name, gradient in mean.items()}

    def clear(self, level: int) -> None:
        """Start the next chunk of a level."""
        self.tokens.pop(level, None)
        self.gradients.pop(level, None)


def summed_loss(memory: Memory, ids: torch.Tensor) -> torch.Tensor:
    """Return the summed loss of all tokens of `ids`, of shape `(1, length)`, except the first."""
    logits = memory.model(input_ids=ids, use_cache=False).logits
    return F.cross_entropy(logits[0, :-1].float(), ids[0, 1:], reduction="sum")


@torch.no_grad()
def write_updated(memory: Memory, block: int, update: Gradients, into: int) -> None:
    """Write the updated block into a slot, another one or its own."""
    targets = dict(memory.expert_parameters(into))
    for name, parameter in memory.expert_parameters(block):
        targets[name].copy_(parameter + update[name].to(parameter.device))
