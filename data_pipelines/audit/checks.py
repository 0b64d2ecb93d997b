"""The list of checks, and their outcomes.

Nothing stops at the first problem. Every check counts its problems, keeps the first few sentences,
and is passed, failed, worth a look, or not checked with the reason. Counts of several shards are
added, so a check has one outcome however many shards there are.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

MOST_PROBLEMS = 20
"""Problems of a check that are kept in words; the others are counted."""


class Outcome(StrEnum):
    """Outcome of a check."""

    PASSED = "passed"
    FAILED = "failed"
    LOOK = "look"
    """Something is unusual and may be right; a person decides."""
    NOT_CHECKED = "not checked"


@dataclass(kw_only=True)
class Tally:
    """Things that a check has looked at, and their problems."""

    checked: int = 0
    num_problems: int = 0
    problems: list[str] = field(default_factory=list)
    """Sentences about the first MOST_PROBLEMS."""

    def add(self, problems: Iterable[str] = (), *, checked: int = 1) -> None:
        """Count things that were looked at, and their problems."""
        self.checked += checked
        for problem in problems:
            self.num_problems += 1
            if len(self.problems) < MOST_PROBLEMS:
                self.problems.append(problem)

    def merge(self, other: "Tally") -> None:
        """Add the tally of another shard."""
        room = MOST_PROBLEMS - len(self.problems)
        self.checked += other.checked
        self.num_problems += other.num_problems
        self.problems.extend(other.problems[:room])


class Tallies(dict[str, Tally]):
    """Tallies by the name of their check; a missing one starts empty."""

    def __missing__(self, name: str) -> Tally:
        """Start a tally."""
        assert name in CLAIMS, name
        self[name] = Tally()
        return self[name]

    def merge(self, other: "Tallies") -> None:
        """Add the tallies of another shard."""
        for name, tally in other.items():
            self[name].merge(tally)


@dataclass(frozen=True, kw_only=True)
class Check:
    """One line of the verdict."""

    name: str
    """Name in `CLAIMS`."""
    claim: str
    """Sentence that is true if the check passed."""
    outcome: Outcome
    detail: str
    """Number of things that were checked, or the reason why none were."""
    num_problems: int = 0
    problems: tuple[str, ...] = ()
    """Sentences about the first problems."""


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A check before it is made."""

    sentence: str
    """Sentence that is true if the check passes."""
    unit: str
    """Plural name of the things that it looks at."""
    is_advice: bool = False
    """Whether a problem is worth a look and fails nothing."""


CLAIMS: Mapping[str, Claim] = {
    "image_manifests": Claim(
        sentence="The manifests of the image shards are well formed", unit="manifests"
    ),
    "image_files": Claim(
        sentence="Image shards and their indexes have the manifest's sizes and hashes",
        unit="shards",
    ),
    "image_members": Claim(
        sentence="The tar files hold the samples and members that manifest and index say",
        unit="samples",
    ),
    "keys": Claim(sentence="No two samples have the same key", unit="samples"),
    "captions": Claim(sentence="Every sample has captions in UTF-8, cleaned", unit="samples"),
    "pictures": Claim(
        sentence="Pictures decode and have the manifest's size", unit="sampled pictures"
    ),
    "records": Claim(
        sentence="The JSON of a sample has its captions", unit="sampled records"
    ),
    "metadata": Claim(sentence="The metadata can be read", unit="rows"),
    "rows": Claim(
        sentence="Every row that was read is kept, or rejected for one reason", unit="rows"
    ),
    "curation": Claim(
        sentence="The counts of curation.json are those of the metadata and manifests",
        unit="counts",
    ),
    "kept_rows": Claim(
        sentence="Kept rows and samples correspond, one to one", unit="samples"
    ),
    "row_captions": Claim(
        sentence="The captions in the shards are those of the metadata", unit="samples"
    ),
    "hold_out": Claim(
        sentence="No picture, and no cluster of near-duplicates, is both in train and held out",
        unit="kept rows",
    ),
    "token_manifest": Claim(
        sentence="The manifest of the token shards is well formed", unit="manifests"
    ),
    "lineage": Claim(
        sentence="The token shards were made with these tokenizers from these image shards",
        unit="hashes",
    ),
    "token_files": Claim(
        sentence="Token shards and their indexes have the manifest's sizes and hashes",
        unit="shards",
    ),
    "token_members": Claim(
        sentence="The token shards hold the samples and members that manifest and index say",
        unit="samples",
    ),
    "token_keys": Claim(
        sentence="Every token shard has the keys of its image shard, in order", unit="shards"
    ),
    "codes": Claim(
        sentence="Codes are uint16 of the tokenizer's grid, within its codebook", unit="samples"
    ),
    "text_ids": Claim(
        sentence="Text ids are int32, within the tokenizer's vocabulary", unit="samples"
    ),
    "counts": Claim(
        sentence="The counts that the token manifest records are those of its shards",
        unit="counts",
    ),
    "text_of_captions": Claim(
        sentence="The text tokenizer gives the same ids again", unit="sampled captions"
    ),
    "round_trip": Claim(
        sentence="Captions come back from their ids", unit="sampled captions", is_advice=True
    ),
    "recoding": Claim(
        sentence="The image tokenizer gives the same codes again", unit="sampled pictures"
    ),
    "truncation": Claim(
        sentence="Captions fit the model's text slots", unit="captions"
    ),
    "drift": Claim(
        sentence="The shards use the codebook alike", unit="shards", is_advice=True
    ),
}  # fmt: skip
"""All checks in the order of the report."""


def conclude(tallies: Tallies, not_checked: Mapping[str, str]) -> tuple[Check, ...]:
    """Return every check with its outcome.

    Args:
        tallies: what was looked at.
        not_checked: reasons why checks were not made, by their names; at least of all others.
    """
    return tuple(
        _concluded(name, claim, tallies[name])
        if name in tallies and (tallies[name].checked or tallies[name].num_problems)
        else Check(
            name=name,
            claim=claim.sentence,
            outcome=Outcome.NOT_CHECKED,
            detail=not_checked[name],
        )
        for name, claim in CLAIMS.items()
    )


def _concluded(name: str, claim: Claim, tally: Tally) -> Check:
    outcome = Outcome.PASSED
    if tally.num_problems:
        outcome = Outcome.LOOK if claim.is_advice else Outcome.FAILED
    return Check(
        name=name,
        claim=claim.sentence,
        outcome=outcome,
        detail=f"{tally.checked:,} {claim.unit}",
        num_problems=tally.num_problems,
        problems=tuple(tally.problems),
    )
