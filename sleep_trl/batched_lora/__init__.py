"""Batched LoRA: many isolated adapters trained together over one frozen model, and used side by side in one batch.

Each adapter comes out as if it had been trained alone: it has its own first weights, data order, optimizer state,
number of steps and early stop, and its loss is normalized over its own tokens. A job that fails is reported and affects
no other.

```python
from sleep_trl.batched_lora import LoraJob, LoraSpec, LoraTraining, train_adapters, using_adapters

jobs = [LoraJob("first", (tokenizer("...").input_ids,)), LoraJob("second", (tokenizer("...").input_ids,))]
first, second = train_adapters(model, jobs, LoraSpec(rank=8), LoraTraining(steps=10))
with using_adapters(model, [first.adapter, second.adapter], rows=[0, 1]):
    model(input_ids)  # (2, length): row 0 with the first adapter, row 1 with the second
```
"""

from .adapters import Adapter
from .api import train_adapters, using_adapters
from .batches import LoraJob, divide_jobs
from .config import LoraSpec, LoraTraining
from .export import export_adapter
from .ray_workers import Workers
from .training import LoraResult

__all__ = [
    "Adapter",
    "LoraJob",
    "LoraResult",
    "LoraSpec",
    "LoraTraining",
    "Workers",
    "divide_jobs",
    "export_adapter",
    "train_adapters",
    "using_adapters",
]
