"""What the name of a part says: to which series it belongs, and where in it."""

from __future__ import annotations

import re
from dataclasses import dataclass

__all__ = ["LAST", "Place", "place_of"]

LAST = 1 << 62  # X.zip comes behind X.z01, X.z02 ...
_ENDINGS = r"(?:\.tar)?\.(?:gz|tgz|zip|tar)"
_SPLIT_BY_ZIP = re.compile(r"(?P<before>.+\.)z(?P<number>\d{2,4})", re.IGNORECASE)
_NUMBER_BEFORE_ENDING = re.compile(rf"(?P<before>.*?)(?P<number>\d+)(?P<behind>{_ENDINGS})", re.IGNORECASE)
_NUMBER = re.compile(r"(?P<before>.*?)(?P<number>\d{1,9})", re.ASCII)
_LETTERS = re.compile(r"(?P<before>.*)(?P<number>[a-z]{2})")
_HAS_ENDING = re.compile(r".*\.(?:tar|gz|tgz|zip|bz2|xz|zst|7z|rar|rec|idx|bin|md|txt|json|part)", re.IGNORECASE)


@dataclass(frozen=True)
class Place:
    """Where a name says that the file belongs: the series, and its number there."""

    before: str
    behind: str
    style: str
    number: int
    width: int

    @property
    def series(self) -> tuple[str, str, str]:
        """What the names of one series have in common."""
        return self.before, self.behind, self.style

    def name(self, number: int) -> str:
        """The name of another part of the series."""
        if self.style == "letters":
            return f"{self.before}{chr(97 + number // 26)}{chr(97 + number % 26)}"
        if self.style == "zip":
            return f"{self.before}zip" if number == LAST else f"{self.before}z{number:02d}"
        return f"{self.before}{number:0{self.width}d}{self.behind}"


def place_of(name: str) -> Place | None:
    """What a name says: a number at its end, one before its ending, two letters as `split` has them, or ``.z01``."""
    if match := _SPLIT_BY_ZIP.fullmatch(name):
        return Place(match["before"], "", "zip", int(match["number"]), 2)
    if match := _NUMBER_BEFORE_ENDING.fullmatch(name):
        return _numbered(match, match["behind"], "inside")
    if match := _NUMBER.fullmatch(name):
        return _numbered(match, "", "behind")
    if not _HAS_ENDING.fullmatch(name) and (match := _LETTERS.fullmatch(name)):
        first, second = (ord(letter) - ord("a") for letter in match["number"])
        return Place(match["before"], "", "letters", 26 * first + second, 2)
    return None


def _numbered(match: re.Match[str], behind: str, style: str) -> Place:
    digits = match["number"]
    return Place(match["before"], behind, style, int(digits), len(digits))
