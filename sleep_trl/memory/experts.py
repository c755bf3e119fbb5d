"""One low-rank expert: a slice of an MLP."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from .hosts import Host, unit_weights


class Expert(nn.Module):
    """A slice of an MLP of its host's form: `down(act(gate(x)) * up(x))`, or `down(act(up(x)))` if it is not gated.

    Weights are float32 whatever the model's dtype (they are trained, and they are small), and are cast to the input's
    dtype at use. The output matrix starts at zero, so that a new expert changes nothing (method 3.2; the zero start is
    ours).

    Args:
        host (`Host`):
            The MLP that the expert is added to.
        width (`int`):
            Number of hidden units, the paper's d_low.
    """

    def __init__(self, host: Host, width: int) -> None:
        super().__init__()
        self.activation = host.activation
        shape, device = (width, host.hidden_size), next(host.module.parameters()).device

        def weight(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(shape, dtype=torch.float32, device=device))

        self.gate = weight(*shape) if host.form.is_gated else None
        self.up = weight(*shape)
        self.down = weight(*reversed(shape))

    @torch.no_grad()
    def reset(self, host: Host, generator: torch.Generator, scale: float) -> None:
        """Draw new input maps and set the output map to zero.

        Ours: an input matrix consists of random rows of the host's own, times `scale`; gate and up are drawn
        independently, so that their products are new. The new units then have the scale of the host's, whatever the
        architecture: normal draws with standard deviation 1/sqrt(hidden) are several times too small after a norm with
        small weights. Rows of zeros, as in a padded checkpoint, are not drawn: such a unit would never learn.
        """
        for name, rows in unit_weights(host).items():
            if not (is_used := rows.any(dim=1)).all():
                rows = rows[is_used]
            chosen = torch.randperm(rows.shape[0], generator=generator)[: self.up.shape[0]]
            getattr(self, name).copy_(rows[chosen.to(rows.device)].float() * scale)
        self.down.zero_()

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # (..., hidden) -> (..., hidden)
        hidden = F.linear(x, self.up.to(x.dtype))  # (..., width)
        if self.gate is None:
            hidden = self.activation(hidden)
        else:
            hidden = self.activation(F.linear(x, self.gate.to(x.dtype))) * hidden
        return F.linear(hidden, self.down.to(x.dtype))
