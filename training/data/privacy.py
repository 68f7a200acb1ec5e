"""Personal data in a text: telephone numbers, e-mail addresses, Chinese identity numbers, bank cards. What is found is
shown in part only, so that a report can be passed on."""

import re
from collections.abc import Iterator
from typing import Literal

PrivateKind = Literal["identity number", "bank card", "phone number", "e-mail address"]

_IDENTITY = re.compile(
    r"(?<![0-9A-Za-z])[1-9]\d{5}(?:19|20)\d{2}(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])\d{3}[\dXx](?![0-9A-Za-z])"
)
_CARD = re.compile(r"(?<![\d.])[3-6]\d{3}(?:[ -]?\d){9,15}(?![\d.])")
_PHONE = re.compile(
    r"(?<![\d.])(?:"
    r"(?:\+?86[- ]?)?1[3-9]\d[- ]?\d{4}[- ]?\d{4}"  # Chinese mobiles
    r"|\+\d{1,3}[- ]?(?:\(\d{1,4}\)|\d{1,4})(?:[- ]?\d{2,4}){2,4}"  # any country's, with its code
    r"|\(?\d{3}\)?[-. ]\d{3}[-. ]\d{4}"  # North American
    r")(?![\d.]\d|\d)"
)
_EMAIL = re.compile(r"[A-Za-z0-9._%+-]+@[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)*\.[A-Za-z]{2,}")
# Of the first 17 digits of an identity number (GB 11643), and the last place by their sum modulo 11.
_WEIGHTS = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)
_CHECK = "10X98765432"


def find_private(text: str) -> Iterator[tuple[PrivateKind, str]]:
    """(kind, masked value) of everything found; identity numbers and cards only if their check digit is right."""
    patterns: list[tuple[PrivateKind, re.Pattern[str]]] = [
        ("identity number", _IDENTITY),
        ("bank card", _CARD),
        ("phone number", _PHONE),
        ("e-mail address", _EMAIL),
    ]
    for kind, pattern in patterns:
        kept, end = [], 0
        for match in pattern.finditer(text):
            if _is_real(kind, match[0]):
                yield kind, masked(match[0])
                kept += [text[end : match.start()], " "]  # one thing is found once
                end = match.end()
        text = "".join([*kept, text[end:]])


def masked(value: str) -> str:
    """A value with too little left to know it: three characters in front and two behind; of an address less."""
    name, at, domain = value.partition("@")
    if at:
        return f"{name[0]}***@{domain[0]}***.{domain.rpartition('.')[2]}"
    return value[:3] + "*" * (len(value) - 5) + value[-2:]


def _is_real(kind: PrivateKind, value: str) -> bool:
    if kind == "identity number":
        total = sum(int(digit) * weight for digit, weight in zip(value, _WEIGHTS, strict=False))
        return value[-1].upper() == _CHECK[total % 11]
    return kind != "bank card" or _luhn(value)


def _luhn(value: str) -> bool:
    digits = [int(character) for character in reversed(value) if character.isdigit()]
    doubled = [digit * 2 - 9 if digit > 4 else digit * 2 for digit in digits[1::2]]
    return len(set(digits)) > 1 and (sum(digits[::2]) + sum(doubled)) % 10 == 0
