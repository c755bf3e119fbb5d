"""What the parts of `gpu_check.py` run on: the device, and models with random weights."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _report import ROOT

Figures = dict[str, Any]

# hidden, intermediate, layers, heads, key-value heads, size of a head, vocabulary
SHAPES = {
    "0.6b": (1024, 3072, 28, 16, 8, 128, 151_936),
    "1.7b": (2048, 6144, 28, 16, 8, 128, 151_936),
    "tiny": (64, 128, 2, 2, 1, 32, 512),
}
QUICKSTART = ROOT / "examples" / "quickstart"
RELATIVE = {"values": 1e-3, "gradients": 1e-2}  # of TRL's kernels in bfloat16 and float32, against float64
COSINE = 0.99


@dataclass(frozen=True)
class Scale:
    """What the parts run on.

    Args:
        device (`str`): `"cuda"` or `"cpu"`.
        is_tiny (`bool`): whether shapes are small, to test this program.
        folder (`Path`): where a part may write.
    """

    device: str
    is_tiny: bool
    folder: Path

    def pick(self, real: Any, tiny: Any) -> Any:
        return tiny if self.is_tiny else real

    @property
    def dtype(self) -> Any:
        import torch

        return torch.bfloat16

    def now(self) -> float:
        if self.device == "cuda":
            import torch

            torch.cuda.synchronize()
        return time.perf_counter()

    def seconds(self, work: Callable[[], Any], times: int = 3) -> float:
        """Return the shortest of some runs, after one that is not timed."""
        work()
        taken = []
        for _ in range(times):
            begun = self.now()
            work()
            taken.append(self.now() - begun)
        return min(taken)

    @contextlib.contextmanager
    def peak(self, figures: Figures, name: str) -> Iterator[None]:
        """Record the peak memory of the device in MiB; on a CPU nothing, since other memory would be in it."""
        import torch

        if self.device != "cuda":
            yield
            return
        torch.cuda.reset_peak_memory_stats()
        yield
        figures[name] = round(torch.cuda.max_memory_allocated() / 2**20)


def make_model(scale: Scale, name: str, dtype: Any = None, layers: int | None = None) -> Any:
    """Create a model with random weights on the device."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    hidden, intermediate, depth, heads, key_value_heads, head_dim, vocabulary = SHAPES[
        "tiny" if scale.is_tiny else name
    ]
    config = Qwen3Config(
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=min(depth, layers or depth),
        num_attention_heads=heads,
        num_key_value_heads=key_value_heads,
        head_dim=head_dim,
        vocab_size=vocabulary,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype or scale.dtype)
    try:
        with torch.device(scale.device):
            model = Qwen3ForCausalLM(config)
    finally:
        torch.set_default_dtype(before)
    model.generation_config.eos_token_id = None  # every completion has the full length
    return model


def random_ids(scale: Scale, model: Any, rows: int, length: int) -> Any:
    import torch

    generator = torch.Generator().manual_seed(1)
    return torch.randint(3, model.config.vocab_size, (rows, length), generator=generator).to(scale.device)
