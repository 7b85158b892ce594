"""The amortised route: one network for any sky of some pulsars, and the exact likelihood to correct and to judge it."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
import zipfile
import zlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.exceptions import NotFittedError
from torch import Tensor

from sbi_flows._files import write_atomic
from sbi_flows._random import seed_from, torch_generator
from sbi_flows._validation import positive
from sbi_flows.diagnostics import misspecification
from sbi_flows.diagnostics.chi_squared import LOOKED_AT
from sbi_flows.embeddings import ObjectEmbedding, SetEmbedding
from sbi_flows.estimators import ConditionalFlow
from sbi_flows.flows import hierarchical
from sbi_flows.inference import NPE, ModelClassifier, Posterior
from sbi_flows.inference.flow_posterior import FlowPosterior
from sbi_flows.inference.model_probability import ModelProbabilities
from sbi_flows.physics.pta.models import get_model
from sbi_flows.physics.pta.timing import LOUDEST, TimingTarget, timing_likelihood
from sbi_flows.physics.pta.timing_arrays import PulsarArray
from sbi_flows.physics.pta.timing_cube import Cube, cube_prior
from sbi_flows.physics.pta.timing_misfit import judged, misfit
from sbi_flows.physics.pta.timing_refine import refined
from sbi_flows.physics.pta.timing_summaries import PulsarSummaries
from sbi_flows.results import Reliability, WeightedSamples

_AT_ONCE = 2000
_OF_ONE_CHOICE = 100  # skies of one choice of pulsars, where these vary
_ROUGH = 2000  # draws of the network from which proposals are made
_TYPICAL = 1000  # simulations kept, among which a sky is looked for
_LAYOUT = 1


@dataclasses.dataclass(frozen=True)
class Effort:
    """What a fit of :class:`TimingNPE` spends.

    Attributes
    ----------
    n_simulations : int
        Of each source.
    max_epochs : int
    hidden : int
        Width of the flow's conditioners; the embedding's is twice that.
    width : int
        Numbers that the embedding makes of each pulsar.
    n_classified : int
        Of each source's simulations, those that the model classifier learns from; 0 for none.
    """

    n_simulations: int = 20_000
    max_epochs: int = 15
    hidden: int = 48
    width: int = 32
    n_classified: int = 5_000


class TimingNPE:
    """Posteriors and evidences for any sky of the same pulsars, from one network that is told which source it is asked about.

    Simulations of every source, from its own prior, train an :class:`sbi_flows.NPE` whose embedding takes pulsars as a set, with the
    statistics and the direction of each (:class:`PulsarSummaries`), and whose flow gives the source's parameters and, with one set of
    weights for all pulsars, each one's own noise. Its draws are then weighted by the exact likelihood, which gives the evidence.

    Parameters
    ----------
    pulsars : PulsarArray
        Their residuals do not matter. With ``n_pulsars`` fewer than these, each batch of simulations is of pulsars drawn from them, and
        any so many of them can be asked about.
    models : sequence of str
    correlation, n_bins
        As in :func:`timing_likelihood`.
    n_pulsars : int, optional
    effort : Effort
    random_state : int

    Attributes
    ----------
    npe_ : NPE
    classifier_ : ModelClassifier or None
        Probabilities of the sources straight from simulations, where there are several.
    typical_ : ndarray (k, p, c)
        Summaries of some simulations, with which a sky is compared.
    seconds_ : dict of str to float
        Spent on simulations and on each fit.

    Examples
    --------
    >>> from sbi_flows.physics.pta import synthetic_pulsars
    >>> from sbi_flows.physics.pta.timing_npe import Effort, TimingNPE
    >>> array = synthetic_pulsars(2, random_state=0)
    >>> net = TimingNPE(array, ["power_law"], effort=Effort(400, 2)).fit()  # doctest: +SKIP
    >>> net.reweighted("power_law", array).log_z  # doctest: +SKIP

    References
    ----------
    Shih, Freytsis, Taylor, Dror & Smyth 2024, "Fast parameter inference on pulsar timing arrays with normalizing flows", arXiv:2310.12209;
    Dax et al. 2023, "Neural importance sampling for rapid and reliable gravitational-wave inference", arXiv:2210.05686.
    """

    npe_: NPE
    classifier_: ModelClassifier | None
    typical_: np.ndarray
    seconds_: dict[str, float]

    def __init__(
        self,
        pulsars: PulsarArray,
        models: Sequence[str],
        *,
        correlation: str = "hd",
        n_bins: int = 14,
        n_pulsars: int | None = None,
        effort: Effort | None = None,
        random_state: int = 0,
    ):
        self.pulsars, self.correlation, self.n_bins = pulsars, correlation, n_bins
        self.models = tuple(dict.fromkeys(get_model(name).name for name in models))
        if not self.models:
            raise ValueError("Expected at least one source; got none.")
        self.n_pulsars = len(pulsars) if n_pulsars is None else int(positive("n_pulsars", n_pulsars, integer=True))
        positive("n_bins", n_bins, integer=True)
        if not 1 <= self.n_pulsars <= len(pulsars):
            raise ValueError(f"Expected n_pulsars from 1 to the {len(pulsars)} there are; got {n_pulsars}.")
        self.effort = Effort() if effort is None else effort
        self.random_state = random_state
        self.width = max(get_model(name).prior.features for name in self.models)
        self._prior = cube_prior(self.width, self.n_pulsars)
        self._summaries: dict[str, PulsarSummaries] = {}

    # --- Fitting -----------------------------------------------------------------------------------------------------------

    def fit(self, stage: Callable[[str], None] = lambda text: None) -> TimingNPE:
        """Simulate and learn; ``stage`` is told what is being done."""
        positive("n_simulations", self.effort.n_simulations, integer=True)
        began, cpu = time.perf_counter(), time.process_time()
        stage(f"simulating {self.effort.n_simulations} skies of each of {len(self.models)} sources")
        rows, x = self.simulations(self.effort.n_simulations, self.random_state)
        self.seconds_ = {"simulations": time.perf_counter() - began}
        stage(f"training on {len(rows)} skies")
        began = time.perf_counter()
        self.npe_ = self._npe(x.shape[1:]).fit(rows, x, from_prior=False)  # too loud a background was drawn again
        self.seconds_["network"] = time.perf_counter() - began
        some = np.random.default_rng(self.random_state).permutation(len(x))[:_TYPICAL]
        self.typical_ = self._without_label(x[some])
        self.classifier_ = self._fit_classifier(x, stage) if len(self.models) > 1 and self.effort.n_classified else None
        self.seconds_["cpu"] = time.process_time() - cpu
        return self

    def simulations(self, n: int, random_state: int) -> tuple[np.ndarray, np.ndarray]:
        """``n`` skies of every source in turn: parameters on the cube, and what the network sees; skies too loud are drawn again."""
        generator = torch_generator(random_state)
        chosen_by = int(np.random.default_rng([random_state, 1]).integers(2**31))
        rows, x = [], []
        at_once = _AT_ONCE if self.n_pulsars == len(self.pulsars) else _OF_ONE_CHOICE
        for name in self.models:
            left, choices = n, torch_generator(chosen_by)  # the same pulsars for every source
            while left:
                array = self._some(choices)
                drawn, skies = self.draw_skies(name, array, min(left, at_once), generator)
                rows.append(drawn.numpy())
                x.append(self._seen(array, skies, name).astype(np.float32))
                left -= len(drawn)
        return np.concatenate(rows), np.concatenate(x)

    def _some(self, generator: torch.Generator) -> PulsarArray:
        if self.n_pulsars == len(self.pulsars):
            return self.pulsars
        picked = torch.randperm(len(self.pulsars), generator=generator)[: self.n_pulsars]
        return self.pulsars.subset(picked.tolist())

    def draw_skies(self, model: str, array: PulsarArray, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """``n`` draws of the prior on the cube, ``(n, features)``, and a sky of each, ``(n, p, 2 m)`` in 1/s.

        A background that the likelihood calls impossible is drawn again, as the posterior has no part in it.
        """
        cube = self.cube(model, array)
        rows = self._prior.sample(n, generator)
        while bool((deafening := (cube.target.log10_rho(cube.to_user(rows)) > LOUDEST).any(-1)).any()):
            rows[deafening] = self._prior.sample(int(deafening.sum()), generator)
        return rows, cube.target.simulate(cube.to_user(rows), generator)

    def log_prior(self, rows: np.ndarray) -> np.ndarray:
        """ln of the prior's density on the cube, ``(n,)``."""
        return self._prior.log_prob(torch.from_numpy(rows)).numpy()

    def _npe(self, shape: tuple[int, ...]) -> NPE:
        effort, prior = self.effort, self._prior
        flow = partial(
            _flow, objects=self.n_pulsars, hidden=(effort.hidden, effort.hidden), support=[tuple(entry) for entry in prior.support]
        )
        estimator = ConditionalFlow(flow=flow, max_epochs=effort.max_epochs, batch_size=256, learning_rate=2e-3, weight_decay=0.0)
        return NPE(prior, estimator, embedding=self._embedding(shape, effort.width), random_state=seed_from(self.random_state))

    def _embedding(self, shape: tuple[int, ...], width: int) -> ObjectEmbedding:
        wide = 2 * self.effort.hidden
        return ObjectEmbedding(
            shape, (self.n_pulsars + 1) * width, hidden=(wide, wide, wide), generator=torch.Generator().manual_seed(self.random_state)
        )

    def _fit_classifier(self, x: np.ndarray, stage: Callable[[str], None]) -> ModelClassifier:
        stage("training the model classifier")
        began = time.perf_counter()
        n, some = self.effort.n_simulations, min(self.effort.n_classified, self.effort.n_simulations)
        # The same rows of every source, from all choices of pulsars: which pulsars there are tells nothing of the source.
        rows = np.linspace(0, n - 1, some).astype(int)
        by_model = {name: self._without_label(x[i * n + rows]) for i, name in enumerate(self.models)}
        shape = next(iter(by_model.values())).shape[1:]
        generator = torch.Generator().manual_seed(self.random_state)
        embedding = SetEmbedding(shape, 32, hidden=(2 * self.effort.hidden,) * 2, generator=generator)
        estimator = ConditionalFlow(hidden=(64, 64), max_epochs=self.effort.max_epochs, batch_size=256, learning_rate=2e-3)
        classifier = ModelClassifier(estimator, embedding=embedding, random_state=self.random_state).fit(by_model)
        self.seconds_["classifier"] = time.perf_counter() - began
        return classifier

    # --- What the network sees ---------------------------------------------------------------------------------------------

    def _seen(self, array: PulsarArray, skies: Tensor | np.ndarray, model: str) -> np.ndarray:
        """Summaries of ``skies (n, p, 2 m)`` with the source's label beside every pulsar's, ``(n, p, c)``."""
        summaries = self._summary_of(array)(torch.as_tensor(skies))
        if len(self.models) == 1:
            return summaries
        label = np.zeros((*summaries.shape[:2], len(self.models)))
        label[..., self.models.index(model)] = 1.0
        return np.concatenate([summaries, label], axis=-1)

    def _without_label(self, x: np.ndarray) -> np.ndarray:
        return x if len(self.models) == 1 else x[..., : -len(self.models)]

    def _summary_of(self, array: PulsarArray) -> PulsarSummaries:
        key = array.digest(residuals=False)
        if key not in self._summaries:
            if len(self._summaries) > 8:
                self._summaries.clear()
            self._summaries[key] = PulsarSummaries(timing_likelihood(array, self.correlation, n_bins=self.n_bins))
        return self._summaries[key]

    def cube(self, model: str, array: PulsarArray) -> Cube:
        """The source's parameters as the network has them."""
        return Cube(self.target(model, array), self.width)

    def target(self, model: str, array: PulsarArray) -> TimingTarget:
        """The exact likelihood of one source for the pulsars and residuals of ``array``."""
        return timing_likelihood(array, self.correlation, model, n_bins=self.n_bins)

    # --- Use ---------------------------------------------------------------------------------------------------------------

    def posterior(self, model: str, array: PulsarArray) -> Posterior:
        """The network's posterior on the cube (see :class:`Cube`) for the residuals of ``array``.

        Its ``reliability`` says where no simulation of any source is like them, column by column and all together
        (:func:`sbi_flows.diagnostics.misspecification`, false alarm 1 %), and where some of its draws do not explain them
        (:func:`.timing_misfit.misfit`).

        Raises
        ------
        ValueError
            For a source or a number of pulsars that it was not trained on.
        """
        posterior = self.unjudged(model, array)
        cube = self.cube(get_model(model).name, array)
        posterior.remark(*misfit(cube.target, cube.to_user(torch.from_numpy(posterior.sample(LOOKED_AT, 0)))))
        return posterior

    def unjudged(self, model: str, array: PulsarArray) -> Posterior:
        """The same before its draws are held against the residuals, for those who weigh them and judge them then."""
        self._check(model, array)
        # As rounded as the simulations kept: what never changes must not seem to.
        seen = self._seen(array, array.tnr[None], get_model(model).name).astype(np.float32)
        posterior = self.npe_.posterior(seen[0])
        posterior.remark(misspecification(self.typical_, self._without_label(seen), random_state=0).reliability.reasons, ())
        return posterior

    def posteriors(self, model: str, array: PulsarArray, tnr: np.ndarray) -> FlowPosterior:
        """The same for many skies ``(m, p, 2 f)`` at once, as one batch; compared with the simulations column by column only."""
        self._check(model, array)
        return self.npe_.posterior(self._seen(array, tnr, get_model(model).name))

    def reweighted(self, model: str, array: PulsarArray, n_samples: int = 10_000, random_state: int = 0) -> WeightedSamples:
        """Draws of the posterior of ``array``'s residuals with weights that make them exact; ``log_z`` is the evidence.

        Returns
        -------
        WeightedSamples
            In the source's own parameters, then two a pulsar, named as those of :meth:`target`.
        """
        cube = self.cube(get_model(model).name, array)

        def log_likelihood(rows: np.ndarray) -> np.ndarray:
            with torch.no_grad():
                return cube.log_likelihood(torch.from_numpy(rows)).numpy()

        weighted = self.unjudged(cube.target.model.name, array).reweight(log_likelihood, n_samples, random_state)
        theta = cube.to_user(torch.from_numpy(weighted.samples)).numpy()
        return judged(dataclasses.replace(weighted, samples=theta, names=cube.target.names), cube.target)

    def refined(self, model: str, array: PulsarArray, n_samples: int = 10_000, random_state: int = 0) -> WeightedSamples:
        """The same, but with proposals made of the network's draws and bettered by the likelihood (:func:`.timing_refine.refined`).

        Effective draws cost a fraction of those of :meth:`reweighted`; their verdict holds what is said of the sky.
        """
        posterior = self.unjudged(model, array)
        cube = self.cube(get_model(model).name, array)
        rough = posterior.sample(_ROUGH, random_state)
        weighted = refined(cube, rough, n_samples=n_samples, random_state=random_state, source=posterior.reliability)
        return judged(weighted, cube.target)

    def probabilities(self, array: PulsarArray) -> ModelProbabilities:
        """Probabilities of the sources from the classifier, which no evidence enters.

        Their ``reliability`` holds what :meth:`posterior` says of the most probable source too: of a sky that none makes, none is probable.
        """
        self._check(self.models[0], array)
        if self.classifier_ is None:
            raise ValueError("Expected two or more sources and n_classified above 0 for probabilities; this network has no classifier.")
        found = self.classifier_.compare(self._without_label(self._seen(array, array.tnr[None], self.models[0]))[0])
        own, sky = found.reliability, self.posterior(found.best, array).reliability
        verdict = Reliability.from_reasons([*own.reasons, *sky.reasons], [*own.notes, *sky.notes])
        return dataclasses.replace(found, reliability=verdict)

    def _check(self, model: str, array: PulsarArray) -> None:
        if not hasattr(self, "npe_"):
            raise NotFittedError("This TimingNPE is not fitted yet: call fit(), or restore() from a folder, first.")
        if get_model(model).name not in self.models:
            raise ValueError(f"Expected one of the sources that the network knows: {', '.join(self.models)}; got {model!r}.")
        if len(array) != self.n_pulsars:
            raise ValueError(f"Expected {self.n_pulsars} pulsars, as the network was trained on; got {len(array)}.")

    # --- Files -------------------------------------------------------------------------------------------------------------

    def save(self, folder: str | Path) -> None:
        """Write the networks and what they were made for into a folder; the description last."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.npe_.save(folder / "network.safetensors")
        # Without a description there is no network: what is half replaced is not taken for either.
        (folder / "network.json").unlink(missing_ok=True)
        (folder / "classifier.safetensors").unlink(missing_ok=True)
        if self.classifier_ is not None:
            self.classifier_.save(folder / "classifier.safetensors")
        np.savez_compressed(folder / "typical.npz", typical=self.typical_)
        write_atomic(folder / "network.json", json.dumps({**self.description(), "seconds": self.seconds_}, indent=1).encode())

    def description(self) -> dict[str, Any]:
        """Plain data that decide the network."""
        return {
            "layout": _LAYOUT,
            "models": list(self.models),
            "pulsars": list(self.pulsars.names),
            "statistics": self.pulsars.digest(residuals=False),
            "n_pulsars": self.n_pulsars,
            "correlation": self.correlation,
            "n_bins": self.n_bins,
            "random_state": self.random_state,
            "effort": dataclasses.asdict(self.effort),
        }

    def restore(self, folder: str | Path) -> bool:
        """Take the networks of a folder if they are those that :meth:`fit` would make; whether they were there, whole.

        Damaged files are as good as absent.
        """
        folder = Path(folder)
        with contextlib.suppress(ValueError, TypeError, KeyError, OSError, EOFError, zipfile.BadZipFile, zlib.error):
            stored = json.loads((folder / "network.json").read_text())
            seconds = stored.pop("seconds", {})
            if stored != json.loads(json.dumps(self.description())):
                return False
            npe = NPE.load(folder / "network.safetensors")
            with (folder / "typical.npz").open("rb") as file, np.load(file) as archive:
                typical = archive["typical"]
            classified = len(self.models) > 1 and self.effort.n_classified
            classifier = ModelClassifier.load(folder / "classifier.safetensors") if classified else None
            self.npe_, self.typical_, self.classifier_, self.seconds_ = npe, typical, classifier, seconds
            return True
        return False


def _flow(features: int, context: int, *, objects: int, hidden: Sequence[int], support: Sequence[Any]):
    return hierarchical(features, context, objects=objects, columns=2, layers=3, hidden=hidden, bins=8, support=support)
