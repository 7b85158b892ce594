"""The draws that flows are fitted to: of all modes together, or of each by itself."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from sbi_flows.flow_sampling.modes import Modes

GROUPS = 16  # that a mode's draws are dealt to in place of chains
_ROWS = 12_000  # that a flow is fitted to, about
_FEWEST = 4  # a group, and twice as many as there are columns in all


def thinned(samples: Tensor, n_flows: int = 1) -> Tensor:
    """``(chain, draw, d)`` with as many draws of each chain left out as so many flows do not need."""
    return samples[:, :: max(1, samples.shape[0] * samples.shape[1] // (_ROWS * n_flows))]


class RowsByMode:
    """Draws of each mode, for flows of their own.

    Parameters
    ----------
    modes : Modes
    to_user : callable
        From ``(chain, draw, d)`` on the real line to the user's parameters, and ``ln |det|`` of that map.
    """

    def __init__(self, modes: Modes, to_user: Callable[[Tensor], tuple[Tensor, Tensor]]):
        self._modes, self._to_user = modes, to_user
        self._rows: dict[int, Tensor] = {}

    def __len__(self) -> int:
        """Modes that have held enough draws for a flow."""
        return len(self._rows)

    def take(self, samples: Tensor) -> list[Tensor]:
        """Draws ``(chain, draw, d)`` on the real line of all chains become ``(GROUPS, draw, d)`` of each mode in the user's parameters.

        A mode that later holds few draws keeps its flow and the draws it was fitted to; one that never held more gets none.
        """
        samples = thinned(samples, self._modes.n)
        user, labels = self._to_user(samples)[0], self._modes.label(samples)
        first, d = not self._rows, samples.shape[-1]
        for k in range(self._modes.n):
            part = user[labels == k]
            if len(part) >= max(_FEWEST * GROUPS, 2 * d) and (first or k in self._rows):
                # Cut in an order that keeps each chain's draws together, as whole groups are held out.
                self._rows[k] = part[: len(part) // GROUPS * GROUPS].view(GROUPS, -1, d)
        return [self._rows[k] for k in sorted(self._rows)]
