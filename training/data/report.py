"""What was found in data files, and what a run would make of it; and the rules by which a run refuses them."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from adapters.errors import Invalid
from training.data.files import BadRow
from training.data.formats import Format

MAX_BAD_SHARE = 0.05
_LISTED = 10  # rows a report lists; the rest are counted


@dataclass(frozen=True)
class Lengths:
    """Tokens a row has."""

    shortest: int
    median: int
    p95: int
    longest: int
    total: int
    learned: int

    @classmethod
    def of(cls, rows: Iterable[tuple[int, int]]) -> "Lengths":
        """Of (tokens, learned tokens) of each row."""
        counted = list(rows)
        lengths = sorted(length for length, _ in counted) or [0]

        def at(share: float) -> int:
            return lengths[min(len(lengths) - 1, int(share * len(lengths)))]

        learned = sum(learned for _, learned in counted)
        return cls(lengths[0], at(0.5), at(0.95), lengths[-1], sum(lengths), learned)


@dataclass(frozen=True)
class Report:
    """What was found in the files, and what a training run would make of it."""

    formats: dict[str, Format]  # by file
    good: int
    bad: list[BadRow]
    duplicates: int  # rows equal to an earlier one; they are trained on, and never split from it
    shortened: list[BadRow]  # rows of which turns were left out to fit max_length
    too_long: list[BadRow]  # rows left out because not even one answer fits
    max_length: int
    lengths: Lengths
    unending: list[BadRow]  # conversations with an answer that does not end in a learned end of turn
    conversations: int
    system_prompt: str | None  # the one system message that all rows share
    with_tools: int = 0  # rows that use tools, shown to the model by the base's template
    with_reasoning: int = 0  # rows whose thoughts are learned
    reasoning_left_out: int = 0  # rows whose thoughts are not, because of the base's template or as asked

    @property
    def end_of_turn_share(self) -> float:
        """Of the conversations, those whose answers all end with a learned end of turn."""
        return 1 - len(self.unending) / self.conversations if self.conversations else 1.0

    @property
    def bad_share(self) -> float:
        return len(self.bad) / max(1, self.good + len(self.bad) + len(self.too_long))

    @property
    def thinking(self) -> bool:
        """Whether what is trained on these rows should think when it is served: most of them do."""
        return 2 * self.with_reasoning > self.conversations

    def refuse(self, *, strict: bool) -> None:
        """Raises Invalid when these rows should not be trained on."""
        wrong = [*self.bad, *self.too_long]
        if strict and wrong:
            raise Invalid(f"{wrong[0]} (--strict allows no such row; {_count(len(wrong), 'row')} like this)")
        if self.bad_share > MAX_BAD_SHARE:
            raise Invalid(
                f"{len(self.bad)} of {self.good + len(self.bad)} rows cannot be used, more than "
                f"{MAX_BAD_SHARE:.0%}; the first: {self.bad[0]}. `bianlian data check` lists them",
                param="data",
            )
        if not self.good:
            reason = f"; the first: {wrong[0]}" if wrong else ""
            raise Invalid(f"no row is left to train on{reason}", param="data")
        if self.unending:
            raise Invalid(
                f"{_count(len(self.unending), 'conversation')} of {self.conversations} would be learned without an end "
                f"of turn, so the adapter would not stop; the first: {self.unending[0]}. The base's chat template must "
                "end an answer with a token that its generation_config.json lists in eos_token_id",
                param="data",
            )

    def lines(self) -> Iterator[str]:
        """The report as text."""
        for path, format in self.formats.items():
            yield f"{path}: {format}"
        yield f"rows: {self.good} good, {len(self.bad)} bad ({self.bad_share:.1%}), {self.duplicates} duplicates"
        kinds = Counter(row.kind for row in self.bad)
        if kinds["empty"]:
            yield f"empty: {_count(kinds['empty'], 'row')} with an empty question or answer, left out"
        yield from listing(self.bad)
        n = self.lengths
        yield (
            f"tokens a row: {n.shortest} to {n.longest}, median {n.median}, 95% up to {n.p95}; "
            f"{n.total:,} in all, {n.learned:,} learned"
        )
        if self.shortened:
            yield f"shortened: {_count(len(self.shortened), 'row')} lost turns beyond {self.max_length} tokens"
            yield from listing(self.shortened)
        if self.too_long:
            yield f"too long: {_count(len(self.too_long), 'row')} left out"
            yield from listing(self.too_long)
        yield f"end of turn learned in {self.end_of_turn_share:.1%} of conversations"
        if self.unending:
            yield (
                "  the rest never learn to stop: the base's chat template ends an answer with no token "
                "that stops generation"
            )
            yield from listing(self.unending)
        if self.system_prompt is not None:
            yield f"system prompt: {self.system_prompt}"
        if self.with_tools:
            yield f"tools: {_count(self.with_tools, 'row')} with functions, as the base's chat template shows them"
        if self.with_reasoning:
            yield f"reasoning: {_count(self.with_reasoning, 'row')} learned with thoughts"
        if self.reasoning_left_out:
            yield (
                f"reasoning: the thoughts of {_count(self.reasoning_left_out, 'row')} are left out and the answers "
                "learned without them (the base's chat template has no place for thoughts, or it was asked for)"
            )


def listing(rows: Sequence[BadRow]) -> Iterator[str]:
    yield from (f"  {row}" for row in rows[:_LISTED])
    if len(rows) > _LISTED:
        yield f"  and {len(rows) - _LISTED} more"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
