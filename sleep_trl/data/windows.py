"""Split a memory into windows of whole sentences that fit the teacher's context."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby, islice, pairwise

import regex
from transformers import PreTrainedTokenizerBase

from .words import has_words

CountAll = Callable[[Sequence[str]], Sequence[int]]  # the lengths of texts in tokens
Piece = tuple[int, str, int]  # the number of its text, what it says, and its length in tokens

# A line break ends a sentence too: headings, lists, tables, chats.
_LINE = regex.compile(r"[^\n]*\n+|[^\n]+")
# Unicode's word boundaries (UAX #29): between any two characters of scripts without spaces, never inside a character.
_WORD_BOUNDARY = regex.compile(r"(?w)\b")
_QUOTE_ENDS = ("」", "』")
_AFTER_QUOTE = regex.compile("と|って|など|を|が|も|の|は(?!い)")  # 「行こう。」と彼は言った。 is one sentence
_CHARACTER = regex.compile(r"\X")
_HEADING, _UNDERLINE = regex.compile(r" {0,3}#{1,6}[ \t]"), regex.compile(r" {0,3}=+\s*")  # of Markdown
_MARKER = regex.compile(r"\s*([#>*+•-]+\s+(?!\d))*")  # of a Markdown list, a quotation or a heading
_END = regex.compile(r"(?r)\p{STerm}\W*\Z")  # read from the end
LONGEST_BLOCK = 4096  # characters; sentencex takes time in proportion to the square of a line in Chinese or Japanese
FEWEST_WORDS = 3  # of a sentence that states something: in Japanese 8 characters, as 2.5 are a word


def split_all(
    texts: Sequence[str], count_all: CountAll, window: int, overlap: int, totals: Sequence[int] | None = None
) -> list[list[str]]:
    """
    Split texts into windows of whole sentences that together cover them.

    Args:
        texts (`Sequence[str]`):
            The memories.
        count_all (`Callable[[Sequence[str]], Sequence[int]]`):
            Returns the lengths of texts in tokens, without special tokens. It gets all sentences at once.
        window (`int`):
            Maximum length of a window, in tokens.
        overlap (`int`):
            Maximum number of tokens, in whole sentences, that a window repeats from the previous one. At most half a
            window is repeated.
        totals (`Sequence[int]`, *optional*):
            The lengths of the texts in tokens, if they are known.

    Returns:
        `list[list[str]]`: the windows of each text. Without overlap they give the text when joined, but for white space
        where it is cut. A sentence longer than a window is split between words, and where it has no spaces between
        characters.
    """
    totals = count_all(texts) if totals is None else totals
    windows = [[text] for text in texts]
    long = [number for number, total in enumerate(totals) if total > window]
    sentences = [(number, sentence) for number in long for sentence in split_sentences(texts[number])]
    for number, of_text in groupby(_fit(sentences, count_all, window), key=lambda piece: piece[0]):
        windows[number] = _join(list(of_text), window, min(overlap, window // 2))
    return windows


def _join(pieces: Sequence[Piece], window: int, overlap: int) -> list[str]:
    """Join consecutive pieces of a text to windows, leaving out those of white space alone."""
    windows: list[str] = []
    start = 0
    while True:
        end, total = start, 0
        while end < len(pieces) and (end == start or total + pieces[end][2] <= window):
            total += pieces[end][2]
            end += 1
        windows.append("".join(piece for _, piece, _ in pieces[start:end]).strip())
        if end == len(pieces):
            return list(filter(None, windows))
        repeated, back = 0, end
        while back - 1 > start and repeated + pieces[back - 1][2] <= overlap:
            back -= 1
            repeated += pieces[back][2]
        start = back


def token_windows(texts: Iterable[str], tokenizer: PreTrainedTokenizerBase, size: int) -> list[list[int]]:
    """Return the token ids of texts, cut into consecutive windows without overlap.

    Args:
        texts (`Iterable[str]`):
            The texts.
        tokenizer (`PreTrainedTokenizerBase`):
            The model's tokenizer. Each window begins with the tokens that it puts before a text, if any.
        size (`int`):
            Maximum length of a window, in tokens.

    Returns:
        `list[list[int]]`: windows of at least two tokens, since the first one has nothing to be predicted from.
    """
    start = [i for i in tokenizer("", verbose=False)["input_ids"] if i != tokenizer.eos_token_id]
    step = size - len(start)
    windows = []
    for text in texts:
        ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        windows += [start + ids[i : i + step] for i in range(0, len(ids), step)]
    return [window for window in windows if len(window) > 1]


def split_sentences(text: str) -> list[str]:
    """Split a text into sentences, which joined give the text again.

    The rules are those of [sentencex](https://github.com/wikimedia/sentencex), which know the full stops of all
    scripts, and its English list of abbreviations, for every text. White space after a sentence belongs to it.
    """
    sentences: list[str] = []
    for line in _LINE.findall(text):
        for i, sentence in enumerate(_segment(line)):
            closes_it = not any(map(str.isalnum, sentence))  # a bracket or a quotation mark
            if i and (closes_it or (sentences[-1].endswith(_QUOTE_ENDS) and _AFTER_QUOTE.match(sentence))):
                sentences[-1] += sentence
            else:
                sentences.append(sentence)
    return sentences


def _segment(line: str) -> Iterator[str]:
    """Yield the sentences of a line, which is read in blocks. The last sentence of a block may go on after it, so the
    next block begins with it; a block without an end of a sentence is doubled."""
    from sentencex import segment

    start, size = 0, LONGEST_BLOCK
    while start < len(line):
        *whole, last = segment("en", line[start : start + size])
        if start + size >= len(line):
            yield from (*whole, last)
            return
        yield from whole
        start += sum(map(len, whole))
        size = LONGEST_BLOCK if whole else 2 * size


def find_statements(text: str) -> list[str]:
    """Return the sentences of a text that state something: those of at least three words that are not headings, without
    white space or Markdown's markers before them (ours)."""
    pieces = [
        piece.strip()
        for line, is_heading in _marked_lines(text)
        if not is_heading
        for piece in split_sentences(_MARKER.sub("", line, count=1))
    ]
    return [piece for piece in pieces if has_words(piece, FEWEST_WORDS)]


def find_headings(text: str) -> list[str]:
    """Return the headings of a text, of at least three words, which [`find_statements`] leaves out."""
    return [line for line, is_heading in _marked_lines(text) if is_heading and has_words(line, FEWEST_WORDS)]


def _marked_lines(text: str) -> Iterator[tuple[str, bool]]:
    """Yield each line with whether it is a heading."""
    for line, below in pairwise([*_LINE.findall(text), ""]):
        yield line, _is_heading(line, below)


def _is_heading(line: str, below: str) -> bool:
    """Whether a line with the line below it is a heading of Markdown. One that ends as a sentence states something."""
    is_underlined = line.count("\n") == 1 and _UNDERLINE.fullmatch(below)
    return bool(is_underlined or _HEADING.match(line)) and not _END.search(line)


def _fit(texts: Sequence[tuple[int, str]], count_all: CountAll, window: int) -> list[Piece]:
    """Halve sentences until every piece fits a window. Each comes with the number of its text, and keeps it."""
    found = _count(texts, count_all)
    while halves := [
        (number, half)
        for number, piece, length in found
        if length > window and len(piece) > 1
        for cut in [_find_cut(piece)]
        for half in (piece[:cut], piece[cut:])
    ]:
        counted = iter(_count(halves, count_all))
        found = [
            new
            for number, piece, length in found
            for new in (islice(counted, 2) if length > window and len(piece) > 1 else [(number, piece, length)])
        ]
    return found


def _count(texts: Sequence[tuple[int, str]], count_all: CountAll) -> list[Piece]:
    lengths = count_all([text for _, text in texts])
    return [(number, text, length) for (number, text), length in zip(texts, lengths, strict=True)]


def _find_cut(sentence: str) -> int:
    """Return where to cut, as near to the middle as possible: after white space, else between words, else between
    characters as a reader sees them, and inside one only if it is longer than a window by itself."""
    middle = len(sentence) // 2
    inside = range(1, len(sentence))
    for positions in (
        (found.end() for found in regex.finditer(r"\s+", sentence)),
        (found.start() for found in _WORD_BOUNDARY.finditer(sentence)),
        (found.start() for found in _CHARACTER.finditer(sentence)),
    ):
        if cuts := [position for position in positions if position in inside]:
            return min(cuts, key=lambda cut: abs(cut - middle))
    return middle
