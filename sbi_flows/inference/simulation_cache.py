"""Finished simulations on disk: small files that appear whole or not at all, found again by the parameters they belong to."""

from __future__ import annotations

import hashlib
import io
import json
import secrets
import time
import zipfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from sbi_flows._files import write_atomic
from sbi_flows.inference.fingerprint import changed

KEY_BYTES = 16
_SECONDS = 5.0  # between two files while simulations come in
_ROWS = 10_000
_OWNER = "simulator.json"


def row_keys(theta: np.ndarray, seed: int | None) -> list[bytes]:
    """What identifies each simulation: its parameters, how often they came before, and the seed.

    A simulation is then found again, and its random numbers are the same, whatever else is simulated beside it.
    """
    seen: Counter[bytes] = Counter()
    keys = []
    for row in np.ascontiguousarray(theta, dtype=np.float64):
        content = row.tobytes()
        text = content + f"|{seen[content]}|{seed}".encode()
        seen[content] += 1
        keys.append(hashlib.blake2b(text, digest_size=KEY_BYTES).digest())
    return keys


class SimulationCache:
    """A folder of finished simulations of one simulator.

    Parameters
    ----------
    folder : str, Path or None
        Made if absent; None keeps nothing.
    """

    def __init__(self, folder: str | Path | None):
        self.folder = None if folder is None else Path(folder)
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
        self._waiting: list[tuple[bytes, np.ndarray]] = []
        self._last = time.monotonic()

    def check(self, parts: Mapping[str, str]) -> dict[str, str]:
        """Compare a simulator's :func:`fingerprint` with that of the simulations in the folder; what is to be compared in future.

        Raises
        ------
        ValueError
            If it is another simulator.
        """
        if self.folder is None:
            return dict(parts)
        path = self.folder / _OWNER
        try:
            before = json.loads(path.read_text()) if path.exists() else {}
        except ValueError as error:
            raise ValueError(f"{path} is damaged ({error}): delete it if the simulator is the one that made the folder.") from error
        if before:
            different = changed(before, parts)
            if different:
                raise ValueError(
                    f"Expected the simulator whose simulations are in {self.folder}; {', '.join(different[:3])} changed since they "
                    "were made. Use another folder. If finished simulations are as good as before (a failure mended), delete "
                    f"{path} and call again."
                )
        own = {part: "" if before.get(part) == "" else value for part, value in parts.items()}
        self._own(own)
        return own

    def keep(self, before: Mapping[str, str], after: Mapping[str, str]) -> None:
        """Compare in future only what simulating left as it was: the rest, such as a count of calls, is no property of the simulator."""
        self._own({part: value if after.get(part) == value else "" for part, value in before.items()})

    def _own(self, parts: Mapping[str, str]) -> None:
        if self.folder is not None:
            write_atomic(self.folder / _OWNER, json.dumps(dict(parts), indent=1).encode())

    def read(self) -> dict[bytes, np.ndarray]:
        """The simulations in the folder by their key, but for those of another shape than most, which failed.

        Raises
        ------
        ValueError
            If a file is damaged.
        """
        found: list[tuple[bytes, np.ndarray]] = []
        for path in [] if self.folder is None else sorted(self.folder.glob("*.npz")):
            try:
                with path.open("rb") as handle, np.load(handle, allow_pickle=False) as file:
                    keys, x = file["keys"], file["x"]
            except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
                raise ValueError(f"{path} is damaged ({error}): delete it; its simulations are then run again.") from error
            found.extend(zip((key.tobytes() for key in keys), x, strict=True))
        if not found:
            return {}
        # A simulation that went wrong again and again counts once.
        shape = Counter(shape for _, shape in {(key, x.shape) for key, x in found}).most_common(1)[0][0]
        return {key: x for key, x in found if x.shape == shape}

    def add(self, key: bytes, x: np.ndarray) -> None:
        """Keep one finished simulation; it is on disk some seconds later at most."""
        if self.folder is None:
            return
        self._waiting.append((key, x))
        if len(self._waiting) >= _ROWS or time.monotonic() - self._last > _SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write what waits, one file a shape."""
        self._last = time.monotonic()
        folder, waiting, self._waiting = self.folder, self._waiting, []
        if folder is None:
            return
        for shape in {x.shape for _, x in waiting}:
            rows = [(key, x) for key, x in waiting if x.shape == shape]
            content = io.BytesIO()
            keys = np.frombuffer(b"".join(key for key, _ in rows), dtype=np.uint8).reshape(-1, KEY_BYTES)
            np.savez(content, keys=keys, x=np.stack([x for _, x in rows]))
            write_atomic(folder / f"{secrets.token_hex(8)}.npz", content.getvalue())
