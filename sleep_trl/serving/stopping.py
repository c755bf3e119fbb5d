"""Stop strings, which `transformers serve` leaves at the end of its answers."""

from __future__ import annotations

from collections.abc import Sequence


class StopCutter:
    """Cuts a streamed text before the first stop string.

    Args:
        stops (`Sequence[str]`): the stop strings.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self.stops = stops
        self.is_cut = False
        self._held = ""  # may be the beginning of a stop string

    def feed(self, text: str) -> str:
        """Take the next piece, and return what can be shown of the text so far that was not returned before."""
        if self.is_cut:
            return ""
        self._held += text
        if found := [place for stop in self.stops if (place := self._held.find(stop)) >= 0]:
            self.is_cut = True
            return self._held[: min(found)]
        keep = max((self._overlap(stop) for stop in self.stops), default=0)
        shown, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return shown

    def end(self) -> str:
        """Return what was held back, at the end of the text."""
        held, self._held = "" if self.is_cut else self._held, ""
        return held

    def _overlap(self, stop: str) -> int:
        """Return how many characters at the end may begin a stop string."""
        longest = min(len(stop) - 1, len(self._held))
        return next((size for size in range(longest, 0, -1) if self._held.endswith(stop[:size])), 0)


def stops_of(stop: str | list[str] | None) -> list[str]:
    """Return the stop strings of a request as a list."""
    return [stop] if isinstance(stop, str) else list(stop or ())


def cut(text: str, stops: Sequence[str]) -> str:
    """Return a text up to the first stop string."""
    return StopCutter(stops).feed(text) if any(stop in text for stop in stops) else text
