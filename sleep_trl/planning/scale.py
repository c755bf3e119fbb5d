"""A night on GPUs that need not be here: memory by phase, what travels, and seconds of a step, from a model's config.

Memory is `peak_memory.estimate_peak`, the estimate of every plan, with lengths stated here in place of a run's texts.
Time is the larger of arithmetic and memory traffic, each at a share of the maker's figure (ours; not yet measured). It
is a lower bound: kernel launches and Python's overhead are not counted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from transformers import PreTrainedModel

from ..config import RunConfig, first_rollout_step
from ..data.parts import Part
from ..data.rows import count_steps, split_shares
from ..data.templates import Template
from ..memory.hosts import find_hosts
from ..models.inspection import build_without_weights, read_config
from ..models.loading import context_limit
from .askings import lay_out_texts
from .gpus import GB, GPU
from .inputs import WINDOW
from .model_inputs import MAX_EXAMPLES
from .peak_memory import Asking, Peak, Texts, estimate_peak
from .shape import Shape

PROMPT, SENTENCE, READING = 64, 25, 400  # tokens around a text, of a sentence, and of a passage with its question
OF_FLOPS, OF_BANDWIDTH = 0.4, 0.6  # of the maker's figures
OF_MEMORY = 0.95  # of a GPU's memory; the rest is the driver's
STAY_SHARDED = '{"ds3_gather_for_generation": false}'
PASSES = 3  # that gather sharded weights: the teacher's, the student's forward and backward


@dataclass(frozen=True)
class Corpus:
    """What is learned: so many documents of so many tokens each."""

    documents: int
    tokens: int

    @property
    def sentences(self) -> int:
        return self.documents * max(1, self.tokens // SENTENCE)


@dataclass(frozen=True)
class Step:
    """What a training step computes, all processes together.

    Args:
        read (`int`): floating-point operations of the teacher's pass and of the student's, forward and backward.
        written (`int`): those of its rollouts.
        decoded (`int`): tokens that its rollouts write one after another.
        weights (`int`): bytes of weights that the decoding of a token reads.
    """

    read: int
    written: int
    decoded: int
    weights: int


@dataclass(frozen=True)
class Scale:
    """A night on named GPUs. Bytes and seconds; memory is that of one GPU.

    Args:
        launch (`str`): the file of launch/accelerate that starts it.
        gathers (`bool`): whether the whole model is gathered on each GPU for rollouts.
        engine (`str`): what generates.
        reserved (`int`): what a vLLM engine takes of a GPU.
        peak (`Peak`): what the trainer takes of it.
        capacity (`int`): what a process can have of it.
        update (`int`): the expert, which goes to each engine after each step.
        update_share (`float`): that, as a share of the model.
        gathered (`int`): weights that a GPU receives in a step, if they are sharded.
        seconds (`float`): of a step without rollouts.
        rollout_seconds (`float`): of a step with rollouts.
        steps (`int`): of the night.
        night_seconds (`float`): of all steps, rollouts in the last of them.
    """

    launch: str
    gathers: bool
    engine: str
    reserved: int
    peak: Peak
    capacity: int
    update: int
    update_share: float
    gathered: int
    seconds: float
    rollout_seconds: float
    steps: int
    night_seconds: float

    @property
    def phases(self) -> dict[str, int]:
        """Bytes of a GPU in each phase, with what is held throughout."""
        held = self.reserved + sum(self.peak.held.values())
        return {name: held + size for name, size in self.peak.phases.items()}

    @property
    def too_large(self) -> list[str]:
        """Phases that take more than a GPU has."""
        return [name for name, size in self.phases.items() if size > self.capacity]


def plan_scale(config: RunConfig, count: int, gpu: GPU, corpus: Corpus) -> Scale:
    """
    Plan a night on `count` GPUs: with whole weights on each, if they fit, or sharded by ZeRO-3.

    vLLM is taken to be installed, and generates if the weights fit `rollout.gpu_memory`, as with `rollout.engine auto`.

    Args:
        config (`RunConfig`):
            The run. Its model's config is read, its memories are not.
        count (`int`):
            GPUs, one process each.
        gpu (`GPU`):
            Which ones.
        corpus (`Corpus`):
            What is learned.

    Raises:
        `ValueError`: if the model cannot host experts, or a step cannot be divided by the number of GPUs.
    """
    whole = _plan(config, count, gpu, corpus, shards=1)
    return whole if count == 1 or not whole.too_large else _plan(config, count, gpu, corpus, shards=count)


def _plan(config: RunConfig, count: int, gpu: GPU, corpus: Corpus, shards: int) -> Scale:
    model_config = read_config(config.model, config.model_revision, needs_weights=False)
    model = build_without_weights(config.model, model_config)
    size = 4 if config.dtype == "float32" else 2
    is_routed = config.memory.routing == "topk"
    parameters = sum(parameter.numel() for parameter in model.parameters())
    shape = Shape.of(type(model).__name__, find_hosts(model), model_config, parameters, size, is_routed)
    active = parameters - count_idle(model)
    context = context_limit(model_config, config.max_context)
    batches, parts = config.seeding.batches(count), _parts(config)
    weights, expert = parameters * size, shape.expert_parameters(config.memory.width)
    reserved = int(config.rollout.gpu_memory * gpu.memory)
    has_vllm = config.rollout.engine != "transformers" and not is_routed and weights <= reserved
    texts = _texts(config, parts, batches.per_device, context)
    room = max(0, int(OF_MEMORY * gpu.memory) - weights // shards) // 2
    peak = estimate_peak(
        shape,
        config,
        width=config.memory.width,
        experts=1,
        max_experts=config.memory.max_experts,
        askings=[] if has_vllm else _askings(config, corpus, context),
        texts=texts,
        accumulation=batches.accumulation,
        cache_room=room,
        is_cpu=False,
        shards=shards,
    )
    step = count_step(shape, active, texts, count * batches.accumulation)
    gathered = PASSES * batches.accumulation * weights * (shards - 1) // shards
    reading = max(step.read / (count * OF_FLOPS * gpu.flops), gathered / (OF_BANDWIDTH * gpu.link))
    received = weights * (shards - 1) // shards / (OF_BANDWIDTH * gpu.link)  # seconds of gathering the model
    is_alone = shards > 1 and not has_vllm  # a sharded model that writes by itself
    gathers = is_alone and bool(config.seeding.extra.get("ds3_gather_for_generation", True))
    if gathers:
        phases = {**peak.phases, "rollouts": peak.phases["rollouts"] + weights - weights // shards}
        peak = replace(peak, phases=phases)
    a_token = max(step.weights / (OF_BANDWIDTH * gpu.bandwidth), received if is_alone and not gathers else 0)
    writing = max(step.written / (count * OF_FLOPS * gpu.flops), step.decoded * a_token) + (received if gathers else 0)
    samples = corpus.sentences * _samples_of_a_sentence(config)
    steps = config.seeding.steps or count_steps(samples, config.seeding.passes, parts["memory"])
    seeding = config.seeding
    rolled = steps - first_rollout_step(seeding.alpha, seeding.lmbda, seeding.rollout_start, steps)
    return Scale(
        launch="zero3.yaml" if shards > 1 else "ddp.yaml" if count > 1 else "single.yaml",
        gathers=gathers,
        engine=("vllm" if count == 1 else f"ray, {count} x vllm") if has_vllm else "transformers",
        reserved=reserved if has_vllm else 0,
        peak=peak,
        capacity=int(OF_MEMORY * gpu.memory),
        update=expert * size if has_vllm else 0,
        update_share=expert * size / weights,
        gathered=gathered,
        seconds=reading,
        rollout_seconds=reading + writing,
        steps=steps,
        night_seconds=steps * reading + rolled * writing,
    )


def count_idle(model: PreTrainedModel) -> int:
    """Return the parameters that a token leaves out: those of a mixture's experts to which it does not go."""
    config = model.config.get_text_config()
    chosen = getattr(config, "num_experts_per_tok", None)
    names = ("num_experts", "n_routed_experts", "num_local_experts")
    total = next((int(n) for name in names if (n := getattr(config, name, None))), 0)
    if not chosen or not total:
        return 0
    inside = sum(
        parameter.numel()
        for module in model.modules()
        if type(module).__name__.endswith("Experts")
        for parameter in module.parameters()
    )
    return inside * (total - int(chosen)) // total


def count_step(shape: Shape, active: int, texts: list[Texts], passes: int) -> Step:
    """
    Return what a training step computes: two operations for each weight and token, and four for each value of the
    attended-to states. The weights are frozen, so that a backward pass takes as much as a forward pass.

    Args:
        shape (`Shape`):
            The base model.
        active (`int`):
            Parameters that a token passes through, embeddings included.
        texts (`list[Texts]`):
            What a forward pass of a device reads.
        passes (`int`):
            Forward passes in a step, of all devices.
    """
    head = shape.vocabulary * shape.hidden_size
    body = max(0, active - head * (1 if shape.is_tied else 2))
    read = written = decoded = 0
    for t in texts:
        for prompt, backward in ((t.teacher, 1), (t.student, 2)):
            read += backward * _forward(shape, body, t.prompts, prompt, 0)
            for rows, tokens in t.continuations:
                read += backward * (_forward(shape, body, rows, tokens, prompt) + 2 * rows * tokens * head)
        rows = t.prompts * t.rollouts
        written += _forward(shape, body, t.prompts, t.student, 0)
        written += _forward(shape, body, rows, t.rollout, t.student) + 2 * rows * t.rollout * head
        decoded += t.rollout if t.rollouts else 0
    return Step(passes * read, passes * written, decoded, shape.parameters * shape.bytes_per_weight)


def _forward(shape: Shape, body: int, rows: int, tokens: int, before: int) -> int:
    """Return the operations of reading `tokens` tokens of each row behind `before` others, without a head."""
    attended = tokens * before + tokens * (tokens + 1) // 2
    return rows * (2 * body * tokens + 4 * shape.layers * shape.hidden_size * attended)


def _parts(config: RunConfig) -> Mapping[Part, int]:
    data = config.dataset
    return split_shares(
        config.seeding.prompts_per_step,
        {"general": data.general_share if data.general_samples else 0.0, "earlier": 0.0},
    )


def _samples_of_a_sentence(config: RunConfig) -> int:
    data = config.dataset
    return sum(
        data.cues_per_sentence if template.takes_cues else 1 if template.is_given else data.samples_per_sentence
        for template in map(Template.load, data.templates)
    )


def _examples(config: RunConfig, context: int) -> int:
    return min(MAX_EXAMPLES, context // 4) if config.dataset.worked_examples else 0


def _texts(config: RunConfig, parts: Mapping[Part, int], per_device: int, context: int) -> list[Texts]:
    around = _examples(config, context) + PROMPT
    return lay_out_texts(
        config,
        parts,
        per_device,
        student=PROMPT + SENTENCE,
        teacher=around + (config.dataset.window or WINDOW) + SENTENCE,
        sample=min(config.dataset.max_new_tokens, 2 * SENTENCE),
        general=PROMPT + min(config.seeding.max_completion_length, config.dataset.general_max_new_tokens),
    )


def _askings(config: RunConfig, corpus: Corpus, context: int) -> list[Asking]:
    """Return a batch of each kind of prompt. No two begin alike, as those about different documents."""
    rows, data = config.evaluation.batch_size, config.dataset
    text, around = min(corpus.tokens, context - PROMPT), _examples(config, context) + PROMPT

    def of(tokens: int) -> list[list[int]]:
        length = min(tokens, context)
        return [[row, *[0] * (length - 1)] for row in range(rows)]

    answer = config.evaluation.max_new_tokens
    return [
        Asking(of(text + around), answer),
        Asking(of(READING), answer),
        Asking(of(around + (data.window or WINDOW) + SENTENCE), data.max_new_tokens, "writing"),
        Asking(of(PROMPT), data.general_max_new_tokens, "writing"),
    ]


def check_fits(scale: Scale, gpu: GPU) -> None:
    """Raise if a phase takes more memory than a GPU has.

    Raises:
        `ValueError`: with the phases, what they take, and what to do.
    """
    if not scale.too_large:
        return
    named = ", ".join(f"{name} {scale.phases[name] / GB:,.1f} GB" for name in scale.too_large)
    advice = {
        "evaluation": "--evaluation.batch_size",
        "writing": "--evaluation.batch_size",
        "rollouts": "--seeding.per_device_batch_size",
        "teacher's pass": "--seeding.per_device_batch_size",
        "student's pass": "--seeding.per_device_batch_size",
    }
    ways = [f"lower {name}" for name in dict.fromkeys(advice[name] for name in scale.too_large if name in advice)]
    if scale.gathers and "rollouts" in scale.too_large:
        ways = [way for way in ways if "per_device" not in way] + [f"give --seeding.extra '{STAY_SHARDED}'"]
    do = "; ".join([*ways, "or take more or larger GPUs"])
    raise ValueError(
        f"--gpus: one {gpu.name} has {scale.capacity / GB:,.1f} GB for a process, and these phases take more: {named}. "
        f"{do[0].upper()}{do[1:]}."
    )
