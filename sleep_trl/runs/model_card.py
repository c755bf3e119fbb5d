"""The model card of a grown model: its base, what it learned, and how to load it."""

from __future__ import annotations

import html
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path, PureWindowsPath
from typing import Any, Literal

from huggingface_hub import ModelCard, ModelCardData

from ..config.model_name import MAIN, hub_repository, is_gguf
from .ledger import LedgerEntry, active_entries, measured_nights, owners, standing_nights

Form = Literal["checkpoint", "adapter"]

TEMPLATE = Path(__file__).with_name("model_card.md.j2")
SHOWN_SOURCES = 4  # of an entry
MAX_LABEL = 60  # characters of a source
FILE = re.compile(r".*[/\\].*\.(txt|md|pdf|html?|docx|jsonl?|csv|parquet)", re.DOTALL | re.IGNORECASE)

HOW_TO_LOAD: dict[Form, str] = {
    "checkpoint": """An ordinary checkpoint of its base's architecture, with wider MLPs:

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("PATH_OR_REPOSITORY")
tokenizer = AutoTokenizer.from_pretrained("PATH_OR_REPOSITORY")
```""",
    "adapter": """The experts alone. They need their base model and `pip install sleep-trl`:

```python
from sleep_trl import load_memory
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained({base})
load_memory(model, "FOLDER")
```""",
}


HOW_TO_CHAT = """

Its prompts were made with these variables of the chat template, and answers are best with the same:

```python
ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, **{variables})
```"""

PADDED = """

Each MLP is padded with {units} units of zeros, so that its width suits kernels and quantizers. They change the output
by rounding alone. To let the model sleep again, continue its run, or take the base model."""


def model_card(
    base: str,
    entries: Sequence[LedgerEntry],
    enabled: Collection[int],
    form: Form,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    revision: str = MAIN,
    padding: int = 0,
) -> str:
    """Write the card.

    Args:
        base (`str`):
            The base model: a name on the Hub, or a path, of which only the last part is shown.
        entries (`Sequence[LedgerEntry]`):
            The ledger, oldest first. Dropped entries are left out, and consolidations, whose nights are listed.
        enabled (`Collection[int]`):
            Indices of the enabled experts. Entries of other experts are counted but not listed.
        form (`str`):
            What the card describes: `checkpoint` or `adapter`.
        chat_template_kwargs (`Mapping`, *optional*):
            Variables for the chat template with which the nights' prompts were made.
        revision (`str`, *optional*, defaults to `"main"`):
            The base's revision on the Hub.
        padding (`int`, *optional*, defaults to `0`):
            Units of zeros with which each MLP is padded.

    Returns:
        `str`: Markdown. Labels from outside are escaped.
    """
    known, measured = standing_nights(entries), active_entries(measured_nights(entries))
    owner = owners(entries)
    shown = [entry for entry in known if owner[entry.id].expert in enabled]
    repository = hub_repository(base)
    name = repository or Path(base).name
    disabled = len(known) - len(shown)
    card = ModelCard.from_template(
        ModelCardData(
            base_model=repository,
            library_name="transformers" if form == "checkpoint" else "sleep-trl",
            pipeline_tag="text-generation",
            tags=["sleep-trl", "continual-learning"],
        ),
        template_path=str(TEMPLATE),
        title=f"{_escaped(name)}, grown",
        base=f"[{_escaped(name)}](https://huggingface.co/{name})" if repository else f"`{name}`",
        nights="a night" if len(shown) == 1 else f"{len(shown)} nights",
        how_to_load=HOW_TO_LOAD[form].replace("{base}", _loaded_by(base, repository, revision))
        + _chat(chat_template_kwargs)
        + (PADDED.replace("{units}", str(padding)) if padding else ""),
        rows=[_row(entry, measured[-1]) for entry in shown],
        skill=_skill(measured[-1]) if known else "",
        left_out=f"What was learned in {disabled} more nights is disabled and not included" if disabled else "",
    )
    return str(card)


def _chat(variables: Mapping[str, Any] | None) -> str:
    return HOW_TO_CHAT.replace("{variables}", repr(dict(variables))) if variables else ""


def _loaded_by(base: str, repository: str | None, revision: str) -> str:
    """Return the arguments with which `from_pretrained` loads the base model."""
    name = Path(base).name
    if is_gguf(base):
        return f'"{repository or f"FOLDER_OF_{name}"}", gguf_file="{name}"'
    version = "" if revision == MAIN else f', revision="{revision}"'
    return f'"{repository or f"FOLDER_OF_{name}"}"{version}'


def _row(entry: LedgerEntry, newest: LedgerEntry) -> dict[str, Any]:
    sources = list(dict.fromkeys(_shown_source(source.source) for source in entry.sources))
    more = f" and {len(sources) - SHOWN_SOURCES} more" if len(sources) > SHOWN_SOURCES else ""
    before, after = (entry.metrics.get(when, {}).get("recall") for when in ("before", "after"))
    last = newest.metrics.get("after", {})
    now = last.get("recall") if entry is newest else last.get("earlier", {}).get(entry.id)
    return {
        "entry": _escaped(entry.id),
        "date": entry.date[:10],
        "records": len(entry.sources),
        "sources": "; ".join(map(_escaped, sources[:SHOWN_SOURCES])) + more,
        "before": _percent(before),
        "after": _percent(after),
        "now": _percent(now),
    }


def _shown_source(source: str) -> str:
    """Return a source as it may be published: of a file or a folder its name, without the folders around it."""
    source = source.removeprefix("file://")
    is_path = source.startswith(("/", "~/", "./", "../")) or FILE.fullmatch(source)
    return PureWindowsPath(source).name if is_path and "://" not in source else source  # with either separator


def _skill(newest: LedgerEntry) -> str:
    """Say what the base skill was before and after the newest night, and on what it was measured."""
    before, after = (newest.metrics.get(when) or {} for when in ("before", "after"))
    names = before.get("probes") or {}
    sentences = []
    if (pair := _pair("skill", before, after)) is not None:
        on = f" ({_escaped(names['skill'])}, with the text in context)" if "skill" in names else ""
        had, has = map(_percent, pair)
        sentences.append(f"The base skill{on} was {had} before the newest night and {has} after it.")
    if (pair := _pair("perplexity", before, after)) is not None:
        on = _escaped(names["perplexity"])
        sentences.append(
            f"The perplexity (on {on}) was {pair[0]:.2f} before the newest night and {pair[1]:.2f} after it."
        )
    return " ".join(sentences)


def _pair(name: str, before: dict[str, Any], after: dict[str, Any]) -> tuple[float, float] | None:
    had, has = before.get(name), after.get(name)
    return None if had is None or has is None else (had, has)


def _escaped(label: str) -> str:
    """Return a label escaped for Markdown and clipped."""
    printable = "".join(c if c.isprintable() else "�" for c in label)
    clipped = printable if len(printable) <= MAX_LABEL else printable[: MAX_LABEL - 1] + "…"
    return re.sub(r"([\\`*_\[\]()|~#!])", r"\\\1", html.escape(clipped, quote=False))


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %"
