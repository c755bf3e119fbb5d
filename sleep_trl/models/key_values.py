"""What a layer of a model keeps of a token in the KV cache. Imports no torch: plans need it too."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def count_key_values(config: PretrainedConfig) -> int:
    """Return the number of keys and values that a layer keeps of each token: twice the heads that have them, times the
    size of a head. Models that keep less, such as those with linear or latent attention, are overestimated."""
    text = config.get_text_config()
    heads = int(text.num_attention_heads)
    size = getattr(text, "head_dim", None) or int(text.hidden_size) // heads
    if getattr(text, "multi_query", False) and not getattr(text, "new_decoder_architecture", False):  # Falcon
        heads = 1
    else:
        heads = next((n for name in ("num_key_value_heads", "num_kv_heads") if (n := getattr(text, name, None))), heads)
    return 2 * int(heads) * int(size)
