"""``Reliability``: the verdict that every result carries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Reliability:
    """A verdict in words.

    Attributes
    ----------
    ok : bool
        Whether the result may be used as it stands.
    reasons : tuple of str
        Why not, and what to do about it; empty when ``ok``.
    notes : tuple of str
        Treatments a reader should know of that do not spoil the result (rows dropped, duplicates found).

    Examples
    --------
    >>> print(Reliability.from_reasons(["a mode is missing: sample more"]))
    NOT RELIABLE
        a mode is missing: sample more
    """

    ok: bool
    reasons: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @classmethod
    def from_reasons(cls, reasons: Sequence[str], notes: Sequence[str] = ()) -> Reliability:
        """The verdict is ok exactly when there is no reason against it."""
        return cls(ok=not reasons, reasons=tuple(reasons), notes=tuple(notes))

    def __str__(self) -> str:
        head = "ok" if self.ok else "NOT RELIABLE"
        lines = [*self.reasons, *(f"note: {note}" for note in self.notes)]
        return "\n    ".join([head, *lines])
