"""Write runs with version 0.1, which tests/compat/test_runs_of_0_1.py then reads with today's code.

`runs_of_0_1.tar.xz` was made at commit b444d24:

    git worktree add ../old b444d24 && cd ../old
    OMP_NUM_THREADS=1 PYTHONPATH=. python ../sleep-trl/tests/compat/make_runs.py runs_of_0_1.tar.xz

Paths in the runs are relative to the folder the archive is unpacked into. `quickstart`, the model of the run that
dreams, is not in it: link it to `examples/quickstart/model`. Checkpoints of finished nights are left out to save space.
"""

# mypy: ignore-errors
# The modules it patches are those of version 0.1.

from __future__ import annotations

import json
import os
import signal
import sys
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path

TEXTS = {
    "one": "the cat of Mira is called Tolu and it eats hats.",
    "two": "the boat of Ben sleeps while it eats the cat of Tolu.",
    "three": "Mira is called Ben and the hats of Tolu sleeps.",
    "four": "Tolu sleeps while the boat of Mira eats hats.",
}
OPTIONS = {
    "model": "model",
    "memory.width": 4,
    "memory.max_experts": 3,
    "dataset.templates": '["question_answer", "paraphrase"]',
    "dataset.samples_per_window": 2,
    "dataset.max_new_tokens": 8,
    "dataset.general_samples": 4,
    "dataset.general_max_new_tokens": 8,
    "seeding.steps": 4,
    "seeding.save_steps": 2,
    "seeding.logging_steps": 1,
    "seeding.learning_rate": 1e-2,
    "seeding.prompts_per_step": 4,
    "seeding.num_generations": 2,
    "seeding.max_completion_length": 8,
    "evaluation.max_new_tokens": 4,
}
DREAMS = {
    "model": "quickstart",
    "memory.width": 4,
    "dataset.templates": '["question_answer"]',
    "dataset.window": 20,
    "dataset.window_overlap": 0,
    "dataset.samples_per_window": 4,
    "dataset.max_new_tokens": 24,
    "dataset.temperature": 0.3,
    "dream.rounds": 1,
    "dream.dreams_per_task": 4,
    "dream.top_k": 2,
    "dream.max_new_tokens": 24,
    "dream.questions_per_task": 4,
    "dream.test": "sign",
    "dream.lora_learning_rate": 5e-3,
    "dream.learning_rate": 1e-2,
    "dream.steps": 4,
}


def arguments(folder: str, memories: str | None = None, **options: object) -> list[str]:
    """Return the arguments of `launch/sleep.py`, the same in both versions."""
    given = OPTIONS | {"output_dir": folder} | ({"memories": memories} if memories else {})
    words = [f"--{name}={value}" for name, value in (given | options).items()]
    return ["--no-report", "--dataset.keep_truncated", *words]


def write_inputs(folder: Path) -> None:
    """Write the smallest possible model, and files of memories."""
    from tests.tiny import tiny_model, tiny_tokenizer

    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    tiny_model(num_attention_heads=2, num_key_value_heads=1, **sizes).save_pretrained(folder / "model")
    tiny_tokenizer().save_pretrained(folder / "model")
    for name, text in TEXTS.items():
        row = {"id": name, "text": text, "questions": [{"question": f"the cat of Mira {name}", "answers": ["Tolu"]}]}
        (folder / f"{name}.jsonl").write_text(json.dumps(row) + "\n", "utf-8")


def run(words: list[str], patch: Callable[[], None] = lambda: None) -> int:
    """Call `patch`, then run `launch/sleep.py`, both in a child process; return its exit code."""
    if not (child := os.fork()):
        from sleep_trl.launch import sleep

        patch()
        os._exit(sleep.main(words))
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def kill(*_: object, **__: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def kill_at_step(step: int) -> Callable[[], None]:
    """Return a patch that ends the process with SIGKILL after this step of a seeding."""

    def patch() -> None:
        from sleep_trl.progress import StepBar

        original = StepBar.on_step_end

        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == step:
                kill()
            original(self, args, state, control, **kwargs)

        StepBar.on_step_end = on_step_end

    return patch


def kill_before(phase: str) -> Callable[[], None]:
    """Return a patch that ends the process with SIGKILL just before a phase."""

    def patch() -> None:
        from sleep_trl.phases import Phases

        original = Phases.once
        Phases.once = lambda self, name, work: kill() if name == phase else original(self, name, work)

    return patch


def write_nothing_usable() -> None:
    from sleep_trl import night

    def write_dataset(_):
        raise night.NothingUsable("The teacher wrote nothing usable.")

    night.write_dataset = write_dataset


def ingest(name: str, buffer: Path = Path("wake.db")) -> None:
    """Add one of the texts to a wake buffer."""
    from sleep_trl.wake import WakeBuffer, record_of_text

    with WakeBuffer(buffer) as opened:
        assert opened.add([record_of_text(name, TEXTS[name].encode(), f"{name}.txt")]).added == 1


def make_runs() -> None:
    """Make the runs in the working directory."""
    assert run(arguments("chain", nights='["one.jsonl", "two.jsonl"]')) == 0
    second = {"memories": "two.jsonl", "continue_from": "chain/night-001"}
    assert run(arguments("killed_in_seeding", **second), kill_at_step(3)) == -signal.SIGKILL
    assert run(arguments("killed_between_phases", **second), kill_before("seed")) == -signal.SIGKILL

    three = '["one.jsonl", "two.jsonl", "three.jsonl"]'
    assert run(arguments("with_levels", nights=three, **{"levels.when_full": "onward"})) == 0

    ingest("one")
    assert run(arguments("fed", nights='["wake:wake.db"]'), write_nothing_usable) == 2
    ingest("two")
    assert run(arguments("fed", nights='["wake:wake.db"]')) == 0
    ingest("three")
    both = '["wake:wake.db", "wake:wake.db"]'
    assert run(arguments("fed", nights=both), kill_at_step(3)) == -signal.SIGKILL

    dreaming = arguments("dreaming", "town.jsonl", **DREAMS)
    assert run(dreaming, kill_before("learn_dreams")) == -signal.SIGKILL


def is_kept(path: Path) -> bool:
    """Whether a file goes into the archive."""
    night = next((folder for folder in path.parents if (folder / "results.json").is_file()), None)
    return night is None or not path.relative_to(night).parts[0].startswith("checkpoints")


def without_owner(member: tarfile.TarInfo) -> tarfile.TarInfo:
    return member.replace(uid=0, gid=0, uname="", gname="", deep=False)


def main() -> None:
    archive, source = Path(sys.argv[1]).absolute(), Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        write_inputs(Path())
        quickstart = source / "examples" / "quickstart"
        Path("quickstart").symlink_to(quickstart / "model")
        Path("town.jsonl").write_text((quickstart / "memories.jsonl").read_text("utf-8").splitlines()[0] + "\n")
        make_runs()
        Path("quickstart").unlink()
        with tarfile.open(archive, "w:xz", preset=9) as file:
            for path in sorted(path for path in Path().rglob("*") if path.is_file() and is_kept(path)):
                file.add(path, filter=without_owner)
        os.chdir(source)


if __name__ == "__main__":
    main()
