"""The thirteen source models: name, parameters with units, prior, spectrum, citation."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from sbi_flows.distributions import BoxUniform, Distribution, MultivariateNormal
from sbi_flows.physics.pta import spectra
from sbi_flows.physics.pta.spectra import Background

Spectrum = Callable[[Tensor, Background], Tensor]

NEW_PHYSICS = "Afzal et al. 2023 (NANOGrav 15-year, signals from new physics), arXiv:2306.16219"


@dataclass(frozen=True)
class Parameter:
    """One parameter: plain name, label in mathtext with its unit, and the ends of its uniform prior (None: Gaussian)."""

    name: str
    label: str
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, eq=False)
class Model:
    """A source of the background.

    Attributes
    ----------
    name : str
        As written on the command line.
    title : str
        As written in figures.
    parameters : tuple of Parameter
    spectrum : callable
        ``theta (n, d)`` and a :class:`Background` to log10 h^2 Omega ``(n, n_bins)``.
    citation : str
    prior : Distribution
        Normalised.
    table : str or None
        The tabulated spectrum it needs, by the name of the registry.
    """

    name: str
    title: str
    parameters: tuple[Parameter, ...]
    spectrum: Spectrum
    citation: str
    prior: Distribution
    table: str | None = None

    @property
    def parameter_names(self) -> tuple[str, ...]:
        return tuple(p.name for p in self.parameters)


def _uniform(
    name: str, title: str, parameters: tuple[Parameter, ...], spectrum: Spectrum, citation: str, table: str | None = None
) -> Model:
    """A model whose prior is the box of its parameters' ends."""
    prior = BoxUniform([p.low for p in parameters], [p.high for p in parameters], names=[p.name for p in parameters])
    return Model(name, title, parameters, spectrum, citation, prior, table)


# Gaussian fit to simulated populations of supermassive black-hole binaries (GWOnly-Ext library).
SMBHB_MEAN = [-15.61492963, 4.70709637]
SMBHB_COVARIANCE = [[0.27871359, -0.00263617], [-0.00263617, 0.12415383]]

_F_PEAK = r"$\log_{10} f_{\rm peak}/{\rm Hz}$"
_CURVATURE = Parameter("log10_A", r"$\log_{10} A$", -3, 1)
_TENSION = r"$\log_{10} G\mu$"
_TRANSITION = (
    Parameter("log10_alpha", r"$\log_{10} \alpha_*$", -2, 1),
    Parameter("log10_T", r"$\log_{10} T_*/{\rm GeV}$", -4, 4),
    Parameter("log10_HR", r"$\log_{10} H_* R_*$", -3, 0),
)


def _shape(a: tuple[float, float], b: tuple[float, float], c: tuple[float, float]) -> tuple[Parameter, ...]:
    return tuple(Parameter(name, f"${name}$", *ends) for name, ends in zip("abc", (a, b, c), strict=True))


_ALL = (
    Model(
        "smbhb",
        "black-hole binaries",
        (Parameter("log10_A", r"$\log_{10} A$"), Parameter("gamma", r"$\gamma$")),
        spectra.power_law,
        "Agazie et al. 2023 (NANOGrav 15-year, black-hole binaries), arXiv:2306.16220; prior as in " + NEW_PHYSICS,
        MultivariateNormal(SMBHB_MEAN, SMBHB_COVARIANCE, names=["log10_A", "gamma"]),
    ),
    _uniform(
        "power_law",
        "power law",
        (Parameter("log10_A", r"$\log_{10} A$", -18, -11), Parameter("gamma", r"$\gamma$", 0, 7)),
        spectra.power_law,
        "Agazie et al. 2023 (NANOGrav 15-year, evidence for a background), arXiv:2306.16213",
    ),
    _uniform(
        "igw",
        "inflation",
        (
            Parameter("n_t", r"$n_t$", 0, 6),
            Parameter("log10_r", r"$\log_{10} r$", -40, 0),
            Parameter("log10_T_rh", r"$\log_{10} T_{\rm rh}/{\rm GeV}$", -3, 3),
        ),
        spectra.igw,
        "Kuroyanagi, Takahashi & Yokoyama 2015, arXiv:1407.4785; " + NEW_PHYSICS,
    ),
    _uniform(
        "sigw_delta",
        "scalar-induced, delta",
        (Parameter("log10_f_peak", _F_PEAK, -11, -5), _CURVATURE),
        spectra.sigw_delta,
        "Kohri & Terada 2018, arXiv:1804.08577; " + NEW_PHYSICS,
    ),
    _uniform(
        "sigw_gauss",
        "scalar-induced, Gauss",
        (Parameter("width", r"$\Delta$", 0.1, 3), Parameter("log10_f_peak", _F_PEAK, -11, -5), _CURVATURE),
        spectra.sigw_gauss,
        "Pi & Sasaki 2020, arXiv:2005.12306; " + NEW_PHYSICS,
        table="sigw_gauss",
    ),
    _uniform(
        "sigw_box",
        "scalar-induced, box",
        (
            Parameter("log10_f_min", r"$\log_{10} f_{\rm min}/{\rm Hz}$", -11, -5),
            Parameter("log10_f_max", r"$\log_{10} f_{\rm max}/{\rm Hz}$", -11, -5),
            _CURVATURE,
        ),
        spectra.sigw_box,
        NEW_PHYSICS,
        table="sigw_box",
    ),
    _uniform(
        "domain_walls",
        "domain walls",
        (
            Parameter("log10_alpha", r"$\log_{10} \alpha_*$", -3, 0),
            Parameter("log10_T", r"$\log_{10} T_*/{\rm GeV}$", -4, 4),
            Parameter("b", r"$b$", 0.5, 1),
            Parameter("c", r"$c$", 0.3, 3),
        ),
        spectra.domain_walls,
        "Ferreira, Notari, Pujolas & Rompineve 2023, arXiv:2204.04228; " + NEW_PHYSICS,
    ),
    _uniform(
        "pt_bubble",
        "phase transition, bubbles",
        _TRANSITION + _shape((1, 3), (1, 3), (1, 3)),
        spectra.pt_bubble,
        "Jinno & Takimoto 2017, arXiv:1605.01403; " + NEW_PHYSICS,
    ),
    _uniform(
        "pt_sound",
        "phase transition, sound",
        _TRANSITION + _shape((3, 5), (2, 4), (3, 5)),
        spectra.pt_sound,
        "Hindmarsh, Huber, Rummukainen & Weir 2017, arXiv:1704.05871; " + NEW_PHYSICS,
    ),
    _uniform(
        "strings_stable",
        "stable strings",
        (Parameter("log10_Gmu", _TENSION, -14, -6),),
        spectra.strings_stable,
        "Blanco-Pillado & Olum 2017, arXiv:1709.02693; " + NEW_PHYSICS,
        table="stable_n",
    ),
    _uniform(
        "strings_meta_l",
        "metastable strings, loops",
        (Parameter("log10_Gmu", _TENSION, -14, -1.5), Parameter("sqrt_kappa", r"$\sqrt{\kappa}$", 7, 9.5)),
        spectra.strings_meta_l,
        "Buchmuller, Domcke & Schmitz 2021, arXiv:2107.04578; " + NEW_PHYSICS,
        table="meta_l",
    ),
    _uniform(
        "strings_meta_ls",
        "metastable strings, loops and segments",
        (Parameter("log10_Gmu", _TENSION, -14, -1.5), Parameter("sqrt_kappa", r"$\sqrt{\kappa}$", 7, 9.5)),
        spectra.strings_meta_ls,
        "Buchmuller, Domcke & Schmitz 2021, arXiv:2107.04578; " + NEW_PHYSICS,
        table="meta_ls",
    ),
    _uniform(
        "strings_super",
        "superstrings",
        (Parameter("log10_Gmu", _TENSION, -14, -6), Parameter("log10_P", r"$\log_{10} P$", -3, 0)),
        spectra.strings_super,
        "Ellis, Lewicki, Lin & Vaskonen 2023, arXiv:2306.17147; " + NEW_PHYSICS,
        table="stable_n",
    ),
)

MODELS = {model.name: model for model in _ALL}

DEFAULT_MODELS = (
    "smbhb",
    "power_law",
    "igw",
    "sigw_delta",
    "sigw_gauss",
    "domain_walls",
    "strings_meta_l",
    "strings_super",
    "pt_bubble",
    "pt_sound",
)


def get_model(name: str) -> Model:
    """The model of that name.

    Raises
    ------
    ValueError
        For an unknown name; the message suggests one that holds it or is spelt nearly so.
    """
    if name in MODELS:
        return MODELS[name]
    wanted = name.lower().replace("-", "_")
    holding = [model for model in MODELS if len(wanted) > 2 and wanted in model]
    near = holding or difflib.get_close_matches(wanted, MODELS, n=1)
    suggestion = f"Did you mean {' or '.join(map(repr, near))}? " if near else ""
    raise ValueError(f"Unknown model {name!r}. {suggestion}The models are {', '.join(MODELS)}.")
