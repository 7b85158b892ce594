"""Which atoms place which: an order of the atoms of a molecule, each placed by a distance, an angle and a dihedral to earlier ones."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

TETRAHEDRAL = 4  # neighbours from which on a centre keeps its hand


@dataclass(frozen=True)
class ZMatrix:
    """An order of placing atoms.

    Attributes
    ----------
    atoms : tuple of int
        All atoms, in the order in which they are placed.
    hinge : int
        The first or the second of them: the third has its distance to this one, and its angle at it.
    references : tuple of (int, int, int)
        For each of ``atoms[3:]``, the atoms to which it has a distance, an angle and a dihedral: all placed before.
    improper : tuple of bool
        For each of ``atoms[3:]``, whether its dihedral is to another neighbour of the atom it is bound to, which takes no part in rotations
        about bonds.
    handed : tuple of bool
        Whether, besides, that atom has four neighbours or more, so that the sign of the dihedral is the hand of a tetrahedral centre.
    """

    atoms: tuple[int, ...]
    hinge: int
    references: tuple[tuple[int, int, int], ...]
    improper: tuple[bool, ...]
    handed: tuple[bool, ...]

    def __post_init__(self) -> None:
        n = len(self.atoms)
        if n < 3 or sorted(self.atoms) != list(range(n)):
            raise ValueError(f"Expected each atom of 0..n-1 once, of three or more; got {self.atoms}.")
        if self.hinge not in self.atoms[:2]:
            raise ValueError(f"Expected the hinge to be one of the first two atoms, {self.atoms[:2]}; got {self.hinge}.")
        if not len(self.references) == len(self.improper) == len(self.handed) == n - 3:
            raise ValueError(f"Expected references, improper and handed for each of the {n - 3} atoms after the third.")
        for i, row in enumerate(self.references):
            if len(set(row)) != 3 or not set(row) <= set(self.atoms[: i + 3]):
                raise ValueError(f"Expected atom {self.atoms[i + 3]} to be placed by three atoms placed before it; got {row}.")


def z_matrix(bonds: Sequence[tuple[int, int]], n_atoms: int | None = None) -> ZMatrix:
    """An order of placing atoms that follows the bonds from the middle of the molecule outwards.

    The longest branch of each atom is placed by the torsion about a bond, and its other neighbours by dihedrals to that branch, which
    stay near 120 or 180 degrees whatever the torsion. Bonds that close rings are no coordinates.

    Parameters
    ----------
    bonds : sequence of (int, int)
        Pairs of bound atoms, counted from 0.
    n_atoms : int, optional
        The largest number in ``bonds`` and one, by default.

    Raises
    ------
    ValueError
        If there are fewer than three atoms, or bonds do not join them all.

    Examples
    --------
    >>> z_matrix([(0, 1), (1, 2), (2, 3)]).references  # butane's carbons: 0 is placed last, by the torsion about 1-2
    ((1, 2, 3),)
    """
    pairs = [(int(a), int(b)) for a, b in bonds]
    n = 1 + max((max(pair) for pair in pairs), default=-1) if n_atoms is None else int(n_atoms)
    neighbours = _neighbours(pairs, n)
    first = min(range(n), key=lambda atom: _centrality(neighbours, atom))
    parent, atoms = _tree(neighbours, first)
    if len(atoms) < n:
        lost = sorted(set(range(n)) - set(atoms))
        raise ValueError(f"Expected bonds that join all {n} atoms; atoms {_some(lost)} are not joined to atom {first}. Add the bonds.")
    placed: list[int] = atoms[:3]
    references, improper, handed = [], [], []
    for atom in atoms[3:]:
        row, is_improper = _placing(atom, placed, parent, neighbours)
        references.append(row)
        improper.append(is_improper)
        handed.append(is_improper and len(neighbours[row[0]]) >= TETRAHEDRAL)
        placed.append(atom)
    return ZMatrix(tuple(atoms), parent[atoms[2]], tuple(references), tuple(improper), tuple(handed))


def _neighbours(pairs: list[tuple[int, int]], n: int) -> list[list[int]]:
    if n < 3:
        raise ValueError(f"Expected three atoms or more, as two have a distance only; got {n}.")
    neighbours: list[list[int]] = [[] for _ in range(n)]
    for a, b in pairs:
        if a == b or not (0 <= a < n and 0 <= b < n):
            raise ValueError(f"Expected bonds between two different atoms of 0..{n - 1}; got {(a, b)}.")
        if b not in neighbours[a]:
            neighbours[a].append(b)
            neighbours[b].append(a)
    return neighbours


def _centrality(neighbours: list[list[int]], start: int) -> tuple[int, int, int, int]:
    """Smallest for an atom in the middle: of those that reach most atoms, the one to which the farthest is nearest."""
    seen, queue = {start: 0}, deque([start])
    while queue:
        atom = queue.popleft()
        for other in neighbours[atom]:
            if other not in seen:
                seen[other] = seen[atom] + 1
                queue.append(other)
    return -len(seen), max(seen.values()), -len(neighbours[start]), start


def _tree(neighbours: list[list[int]], first: int) -> tuple[dict[int, int], list[int]]:
    """Who is bound to whom on the way out from ``first``, and the order: by shells, long branches before short ones."""
    parent, order = {first: first}, [first]
    for atom in order:
        for other in neighbours[atom]:
            if other not in parent:
                parent[other] = atom
                order.append(other)
    size = dict.fromkeys(order, 1)
    for atom in reversed(order[1:]):
        size[parent[atom]] += size[atom]
    children: dict[int, list[int]] = {atom: [] for atom in order}
    for atom in order[1:]:
        children[parent[atom]].append(atom)
    out = [first]
    for atom in out:
        out += sorted(children[atom], key=lambda child: (-size[child], child))
    return parent, out


def _placing(atom: int, placed: list[int], parent: dict[int, int], neighbours: list[list[int]]) -> tuple[tuple[int, int, int], bool]:
    """The three atoms that place ``atom``, and whether its dihedral is to a neighbour of the atom it is bound to."""
    bound = parent[atom]
    behind = placed[1] if bound == placed[0] else parent[bound]
    beside = next((a for a in placed if parent[a] == bound and a not in (bound, behind)), None)
    if beside is not None:
        return (bound, behind, beside), True
    beyond = next(a for a in placed if a in neighbours[behind] and a != bound)
    return (bound, behind, beyond), False


def _some(atoms: list[int]) -> str:
    return ", ".join(map(str, atoms[:5])) + (f" and {len(atoms) - 5} more" if len(atoms) > 5 else "")
