"""Peak memory of a night, per process: what it holds throughout, and the most that one of its phases adds (ours).

Arithmetic on shapes and lengths. Prompts are those that the run will ask with, cut into the batches that its engine
will make of them. An estimate, not a bound: replies and requests count at their maximum length, and what a dream, a
reward's model or an engine with its own weights takes is not counted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ..config import RunConfig
from ..models.head import REPLAY_BYTES, positions_per_tile
from ..rollout.prefixes import plan_batches
from .shape import FLOAT32, MIB, Shape

LIBRARIES = 720 * MIB  # resident in a process that has imported what a night needs; not on an accelerator
VLLM_LIBRARIES = 290 * MIB  # the same for vLLM
SCATTERED = 1.15  # what the kept tensors of a step take, since freed ones between them are not all reused
SAMPLING = 6  # float32 copies of the last logits: scaled, sorted with their indices, summed up
TILES = 10  # float32 tiles of logits that TRL's kernels hold
LIVE_PARAMETERS = 10**9  # of sharded weights gathered at a time (DeepSpeed's stage3_max_live_parameters)

Prompts = Sequence[Sequence[int]]


@dataclass(frozen=True)
class Peak:
    """Where the memory of a process goes.

    Args:
        held (`Mapping[str, int]`): bytes that are held throughout, by what they hold.
        phases (`Mapping[str, int]`): bytes that each phase adds; they do not add up.
        not_counted (`tuple[str, ...]`, *optional*): what takes more memory.
    """

    held: Mapping[str, int]
    phases: Mapping[str, int]
    not_counted: tuple[str, ...] = ()

    @property
    def largest_phase(self) -> str:
        return max(self.phases, key=lambda name: self.phases[name])

    @property
    def total(self) -> int:
        """The peak in bytes."""
        return sum(self.held.values()) + self.phases[self.largest_phase]

    def __str__(self) -> str:
        parts = [f"{name} {size / MIB:,.0f}" for name, size in self.held.items() if size >= MIB]
        parts.append(f"{self.largest_phase} {self.phases[self.largest_phase] / MIB:,.0f}")
        left_out = f"; not counted: {', '.join(self.not_counted)}" if self.not_counted else ""
        return f"about {self.total / MIB:,.0f} MiB per process ({', '.join(parts)}){left_out}"


@dataclass(frozen=True)
class Texts:
    """What a training step reads about one part of the data set.

    Args:
        prompts (`int`): prompts of this part in a forward pass of a device.
        student (`int`): the most tokens of the student's prompts.
        teacher (`int`): the most tokens of the teacher's.
        reference (`int`): the most tokens of the samples behind them.
        rollouts (`int`, *optional*): rollouts of each prompt.
        rollout (`int`, *optional*): the most tokens of a rollout.
        replayed (`int`, *optional*): texts of self-replay in the data set, which come back in later steps.
    """

    prompts: int
    student: int
    teacher: int
    reference: int
    rollouts: int = 0
    rollout: int = 0
    replayed: int = 0

    @property
    def continuations(self) -> list[tuple[int, int]]:
        """Rows behind the prompts, and the tokens of each."""
        return [(self.prompts, self.reference), (self.prompts * self.rollouts, self.rollout)]


@dataclass(frozen=True)
class Asking:
    """What an engine is asked together: prompts, the most tokens that follow each, and the phase of the night."""

    prompts: Prompts
    new_tokens: int
    phase: str = "evaluation"


def estimate_peak(
    shape: Shape,
    config: RunConfig,
    *,
    width: int,
    experts: int,
    max_experts: int,
    askings: Sequence[Asking],
    texts: Sequence[Texts],
    accumulation: int,
    cache_room: int,
    is_cpu: bool = True,
    teacher_parameters: int = 0,
    vllm_cache: int | None = None,
    shards: int = 1,
    not_counted: tuple[str, ...] = (),
) -> Peak:
    """
    Estimate the peak memory of a process.

    Args:
        shape (`Shape`):
            The base model.
        config (`RunConfig`):
            The run.
        width (`int`):
            Hidden units of an expert.
        experts (`int`):
            Experts in use, the new one included.
        max_experts (`int`):
            Experts allocated in each layer.
        askings (`Sequence[Asking]`):
            What the model is asked outside of training.
        texts (`Sequence[Texts]`):
            What a forward pass of training reads.
        accumulation (`int`):
            Forward passes of a step.
        cache_room (`int`):
            Bytes that the engine allows for the KV cache of a batch.
        is_cpu (`bool`, *optional*, defaults to `True`):
            Whether the model is in main memory, where the libraries count too.
        teacher_parameters (`int`, *optional*, defaults to `0`):
            Parameters of models that teach in the model's place.
        vllm_cache (`int`, *optional*):
            Bytes of the KV cache of a vLLM in the process, which has weights of its own. Default: there is none.
        shards (`int`, *optional*, defaults to `1`):
            Processes over which the weights are sharded (ZeRO-3) and remain so: for rollouts on the model itself TRL
            gathers them unless configured not to.
        not_counted (`tuple[str, ...]`, *optional*):
            What takes more memory, by name.
    """
    size, expert = shape.bytes_per_weight, shape.expert_parameters(width)
    held = {
        "libraries": LIBRARIES if is_cpu else 0,
        "weights": (shape.parameters + teacher_parameters) * size // shards,
        "experts": max_experts * expert * FLOAT32 // shards,
    }
    if shards > 1:
        held["gathered layers"] = min(LIVE_PARAMETERS, shape.parameters) * size
    elif not shape.is_routed:  # settled experts are computed in copies of the MLPs' layers, most of which share memory
        held["wider MLPs"] = size * (shape.layers * shape.hidden_size * shape.intermediate_size + experts * expert)
    if vllm_cache is not None:
        held["vLLM"] = (VLLM_LIBRARIES if is_cpu else 0) + vllm_cache + shape.parameters * size
    phases = dict.fromkeys((asking.phase for asking in askings), 0)
    for asking in askings:
        asked = asking_bytes(shape, asking, config.evaluation.batch_size, cache_room)
        phases[asking.phase] = max(phases[asking.phase], asked)
    states = 3 * expert * FLOAT32 // shards  # gradient and two moments
    if shards == 1 and not config.seeding.expert_dropout:  # what teachers say of self-replay is kept
        tokens = sum(t.replayed * (t.student + t.reference) for t in texts)
        states += min(REPLAY_BYTES, tokens * shape.hidden_size * size)
    passes = training_bytes(shape, config, width, texts, accumulation, is_cpu)
    phases |= {name: states + taken for name, taken in passes.items()}
    phases["checking the folded model"] = (
        0 if shape.is_routed else size * (shape.parameters + experts * expert) // shards
    )
    return Peak(held, phases, not_counted)


def asking_bytes(shape: Shape, asking: Asking, most_rows: int, cache_room: int) -> int:
    """Return the bytes of the largest batch that `TransformersEngine` makes of prompts: the KV cache of its rows and of
    the prefixes that they share, and what reading them or sampling takes."""
    if not asking.prompts:
        return 0
    prompts = [list(prompt) for prompt in asking.prompts]
    everywhere, planned = plan_batches(prompts, most_rows, cache_room / shape.cache_bytes, asking.new_tokens)
    largest = shape.cache_bytes * everywhere + reading_bytes(shape, 1, everywhere, everywhere)
    for batch in planned:
        rows = [(prompts[row], shared) for row, shared in zip(batch.rows, batch.shared, strict=True)]
        prefixes = len({tuple(ids[:shared]) for ids, shared in rows if shared})
        longest, prefix = max(len(ids) for ids, _ in rows), max(batch.shared)
        unread = max(len(ids) - shared for ids, shared in rows)
        cache = shape.cache_bytes * (len(rows) * (longest + asking.new_tokens) + prefixes * prefix)
        reading = max(
            reading_bytes(shape, len(rows), unread, longest),
            reading_bytes(shape, prefixes, prefix - everywhere, prefix),
            SAMPLING * len(rows) * shape.vocabulary * FLOAT32,
        )
        largest = max(largest, cache + reading)
    return largest


def reading_bytes(shape: Shape, rows: int, tokens: int, width: int) -> int:
    """Return the bytes that a forward pass without gradients takes, for `tokens` tokens of each row that attend to
    `width` tokens: the states of one layer, twice, since an allocator does not reuse all that was freed; keys and
    values repeated for all heads, if heads share them; and the attention mask, as it is and as numbers."""
    states = (3 if shape.is_gated else 2) * shape.intermediate_size + 3 * shape.hidden_size
    mask = width * (1 + shape.bytes_per_weight) if rows > 1 or tokens < width else 0  # a whole row needs none
    repeated = 2 * shape.hidden_size * shape.bytes_per_weight if shape.key_values < 2 * shape.hidden_size else 0
    return rows * (tokens * (2 * states * shape.bytes_per_weight + mask) + width * repeated)


def kept_bytes(shape: Shape, width: int, rows: int, tokens: int, before: int = 0, is_recomputed: bool = False) -> int:
    """Return the bytes of the tensors that a forward pass keeps for its backward pass. Weights are frozen but for an
    expert's, so each layer keeps: queries and output of attention and the expert's input (3 x hidden), the input of
    both norms in float32, the input of the activation and both factors of the product (3 x intermediate, if gated), and
    the expert's own (4 x width); keys and values of all heads (2 x hidden) for every token that is attended to, and, if
    some were read before, the cache; and the mask. Recomputed, one layer does, and the others keep their input.

    Args:
        shape (`Shape`):
            The base model.
        width (`int`):
            Hidden units of the expert.
        rows (`int`):
            Rows that are read together.
        tokens (`int`):
            Tokens of each.
        before (`int`, *optional*, defaults to `0`):
            Tokens that come before them and were read already.
        is_recomputed (`bool`, *optional*, defaults to `False`):
            Whether gradient checkpointing is on.
    """
    size, hidden, linears = shape.bytes_per_weight, shape.hidden_size, 3 if shape.is_gated else 1
    own = size * (3 * hidden + linears * shape.intermediate_size + 4 * width) + 2 * FLOAT32 * hidden
    attended = 2 * hidden + (shape.key_values if before else 0) + tokens
    layer = rows * (tokens * own + (before + tokens) * attended * size)
    return layer + shape.layers * rows * tokens * hidden * size if is_recomputed else shape.layers * layer


def training_bytes(
    shape: Shape, config: RunConfig, width: int, texts: Sequence[Texts], accumulation: int, is_cpu: bool
) -> dict[str, int]:
    """Return the bytes of each part of a training step, apart from gradient and moments of the expert: rollouts, the
    teacher's pass, and the student's. Prompts are read once, and references and rollouts behind them, unless
    activations are recomputed: then each is read with its prompt."""
    again, hidden = config.seeding.gradient_checkpointing, shape.hidden_size * shape.bytes_per_weight

    def cached(length: Callable[[Texts], int], of: Texts, rows: int, tokens: int) -> int:
        cache = shape.cache_bytes * (of.prompts * length(of) + rows * (length(of) + tokens))
        return cache + reading_bytes(shape, of.prompts, length(of), length(of))

    written = sum(rows * tokens for t in texts for rows, tokens in t.continuations)
    rollouts = sum(cached(_student, t, accumulation * t.prompts * t.rollouts, t.rollout) for t in texts if t.rollouts)
    taught = max(cached(_teacher, t, rows, tokens) for t in texts for rows, tokens in t.continuations)
    kept = 0
    for t in texts:
        kept += 0 if again else kept_bytes(shape, width, t.prompts, t.student)
        for rows, tokens in t.continuations:
            before, read = (0, t.student + tokens) if again else (t.student, tokens)
            kept += kept_bytes(shape, width, rows, read, before, again)
    positions = positions_per_tile(is_cpu, shape.bytes_per_weight == FLOAT32)
    tile = TILES * min(positions, written) * shape.vocabulary * FLOAT32
    student = int(SCATTERED * kept) + tile
    return {
        "rollouts": rollouts,
        "teacher's pass": hidden * written + taught,
        "student's pass": hidden * written + student,
    }


def _student(texts: Texts) -> int:
    return texts.student


def _teacher(texts: Texts) -> int:
    return texts.teacher
