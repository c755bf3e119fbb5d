"""Counts the records of a wake buffer that are pending for the next night, and their tokens."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

from huggingface_hub import hf_hub_download
from tokenizers import Tokenizer

from ..config.model_name import MAIN, is_gguf
from ..planning.chain import quarantined_nights
from ..planning.night_source import began_with
from ..runs.folder import RunFolder
from ..runs.ledger import read_ledger
from ..wake import RecordInfo, WakeBuffer


@dataclass(frozen=True)
class Pending:
    """What is pending for the next night.

    Args:
        records (`int`): number of records.
        tokens (`int`, *optional*): tokens of their texts without prompts, or `None` if they are not counted.
    """

    records: int
    tokens: int | None


class PendingRecords:
    """Counts the pending records of a wake buffer. Each text is read and tokenized once.

    Args:
        path (`Path`):
            The buffer, created if it is missing, so that one can wait for the first record.
        tokenizer (`Tokenizer`, *optional*):
            The model's tokenizer. Tokens are not counted without it.
        chain (`Path`, *optional*):
            The folder of the chain that learns the records.
    """

    def __init__(self, path: Path, tokenizer: Tokenizer | None = None, chain: Path | None = None) -> None:
        self.path, self.tokenizer, self.chain = path, tokenizer, chain
        self._lengths: dict[str, int] = {}
        self._sound: set[str] = set()
        self._counted: tuple[object, Pending] | None = None
        self._ledger: Path | None = None

    def count(self) -> Pending:
        """Return what is pending now. The buffer is only read if it, the ledger, or the quarantined nights changed.

        The records of a night that was rolled back or quarantined do not count, because on their own they would end in
        the same night again. They are learned together with records that arrive later. Nor do damaged records, which
        are marked as failed.
        """
        state = self._state()  # before it is read: what arrives meanwhile is counted the next time
        if self._counted is None or self._counted[0] != state:
            self._counted = state, self._count()
        return self._counted[1]

    def _state(self) -> object:
        """Return what changes with the buffer's files and what else determines the count."""
        files = [self.path, self.path.with_name(f"{self.path.name}-wal"), *([self._ledger] if self._ledger else ())]
        return [_stamp(file) for file in files], quarantined_nights(self.chain) if self.chain else []

    def _count(self) -> Pending:
        with WakeBuffer(self.path) as buffer:
            self._ledger = RunFolder(run).ledger if (run := buffer.run()) else None
            tried = _rolled_back(buffer.run()) | _quarantined(self.chain)
            untried = [record for record in buffer.records("new") if record.sha256 not in tried]
            records = [record for record in untried if record.sha256 in self._sound or buffer.is_sound(record)]
            self._sound = {record.sha256 for record in records}
            if self.tokenizer is None:
                return Pending(len(records), None)
            self._lengths = {record.sha256: self._length(buffer, record) for record in records}
        return Pending(len(records), sum(self._lengths.values()))

    def _length(self, buffer: WakeBuffer, record: RecordInfo) -> int:
        if (known := self._lengths.get(record.sha256)) is not None:
            return known
        assert self.tokenizer
        return len(self.tokenizer.encode(buffer.text(record.id), add_special_tokens=False))


def _stamp(file: Path) -> tuple[int, int, int] | None:
    """Return what changes when a file is written or replaced, or `None` if it is missing or empty."""
    try:
        status = file.stat()
    except FileNotFoundError:
        return None
    return (status.st_ino, status.st_mtime_ns, status.st_size) if status.st_size else None


def _rolled_back(run: Path | None) -> set[str]:
    """Return the hashes of the newest night's records if it was rolled back."""
    try:
        newest = read_ledger(RunFolder(run).ledger)[-1] if run else None
    except (ValueError, OSError):  # the buffer warned about it when it was opened
        return set()
    return {source.sha256 for source in newest.sources} if newest and newest.rolled_back else set()


def _quarantined(chain: Path | None) -> set[str]:
    """Return the hashes of the records of a chain's quarantined nights. Nights about files have none."""
    nights = quarantined_nights(chain) if chain else []
    return set().union(*(_ingested_by(night) for night in nights if RunFolder(night).ingested.is_file()))


@cache
def _ingested_by(quarantined: Path) -> frozenset[str]:
    return frozenset(memory.sha256 for memory in began_with(quarantined))


def load_tokenizer(model: str, revision: str = MAIN) -> Tokenizer:
    """Load a model's tokenizer without transformers, which would keep torch in memory for weeks of waiting.

    Args:
        model (`str`):
            A folder, a name on the Hugging Face Hub, or a GGUF file.
        revision (`str`, *optional*, defaults to `"main"`):
            Branch, tag or commit on the Hub.

    Raises:
        `ValueError`: if the model has no `tokenizer.json`, or it cannot be loaded.
    """
    if is_gguf(model):
        from ..models.gguf import local_checkpoint  # imports torch, which a waiting daemon otherwise does without

        model = local_checkpoint(model)
    is_local = Path(model).is_dir()
    try:
        name = "tokenizer.json"
        path = Path(model, name) if is_local else Path(hf_hub_download(model, name, revision=revision))
        tokenizer = Tokenizer.from_str(path.read_text("utf-8"))
    except Exception as error:  # the Hub has several kinds, and tokenizers raises nothing narrower
        raise ValueError(
            f"model: {model} has no tokenizer.json to count tokens with "
            f"({type(error).__name__}: {str(error).partition(chr(10))[0]}). Save it with transformers: "
            f"AutoTokenizer.from_pretrained(MODEL).save_pretrained(FOLDER); or use --at without --after_tokens."
        ) from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer
