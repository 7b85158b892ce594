"""Small files in the layouts of other samplers, written by hand from their documentation, of draws whose evidence is known."""

from pathlib import Path

import numpy as np

LOG_Z = -np.log(100.0)  # two standard normals in a uniform prior on [-5, 5]^2


def draws(n=1000, seed=0):
    """Independent draws ``(n, 2)`` of a standard normal, ln likelihood (normalised) and ln posterior."""
    x = np.random.default_rng(seed).normal(size=(n, 2))
    log_l = -0.5 * (x**2).sum(axis=1) - np.log(2 * np.pi)
    return x, log_l, log_l + LOG_Z


def write_ptmcmc(folder: Path, n=1000, seed=0, names=("gamma", "log10_A")):
    folder.mkdir(exist_ok=True)
    x, log_l, log_p = draws(n, seed)
    np.savetxt(folder / "chain_1.txt", np.column_stack([x, log_p, log_l, np.full(n, 0.3), np.zeros(n)]))
    (folder / "pars.txt").write_text("".join(f"{name}\n" for name in names))
    (folder / "priors.txt").write_text("".join(f"{name}:Uniform(pmin=-5, pmax=5)\n" for name in names))
    return folder


def write_getdist(root: Path, lengths=(600, 500), separator="_"):
    for number, n in enumerate(lengths, start=1):
        x, _, log_p = draws(n, seed=number)
        weights = np.random.default_rng(number).integers(1, 4, size=n)
        derived = x.sum(axis=1)
        np.savetxt(f"{root}{separator}{number}.txt", np.column_stack([weights, -log_p, x, derived]))
    Path(f"{root}.paramnames").write_text("a  \\Omega_m\nb\nsum*  a+b\n")
    Path(f"{root}.ranges").write_text("a  -5  5\nb  -5  N\n")
    return root


def write_cobaya(root: Path, lengths=(600, 500)):
    for number, n in enumerate(lengths, start=1):
        x, log_l, log_p = draws(n, seed=number)
        table = np.column_stack([np.ones(n), -log_p, x, x[:, 0] ** 2, log_l - log_p, log_l - log_p, -2 * log_l, -2 * log_l])
        header = "weight  minuslogpost  a  b  square  minuslogprior  minuslogprior__0  chi2  chi2__like"
        np.savetxt(f"{root}.{number}.txt", table, header=header)
    Path(f"{root}.updated.yaml").write_text(
        "params:\n  a:\n    prior: {min: -5, max: 5}\n    latex: \\alpha\n  b:\n    prior: [-5, 5]\n"
        "  square:\n    derived: 'lambda a: a**2'\n"
        "likelihood:\n  like:\n    external: !!python/name:os.system ''\n"
        "sampler:\n  mcmc: {max_tries: 1000}\n"
    )
    return root


def write_emcee(path: Path, n_walkers=8, n_steps=300):
    """By emcee itself, on a standard normal in the box."""
    import emcee

    def log_prob(x):
        return -0.5 * float(x @ x) - np.log(2 * np.pi) + LOG_Z if np.all(np.abs(x) < 5) else -np.inf

    sampler = emcee.EnsembleSampler(n_walkers, 2, log_prob, backend=emcee.backends.HDFBackend(str(path)))
    sampler.random_state = np.random.RandomState(0).get_state()
    sampler.run_mcmc(np.random.default_rng(0).normal(size=(n_walkers, 2)), n_steps)
    return sampler


def write_emcee_layout(path: Path, n_walkers=8, n_steps=3000, seed=0):
    """The layout of emcee's HDF5 backend, of independent draws: emcee itself opens the file once a step, seconds for as many steps."""
    import h5py

    x, _, log_p = draws(n_walkers * n_steps, seed)
    with h5py.File(path, "w") as file:
        group = file.create_group("mcmc")
        group.attrs.update({"version": "3.1.6", "nwalkers": n_walkers, "ndim": 2, "has_blobs": False, "iteration": n_steps})
        group["chain"] = x.reshape(n_steps, n_walkers, 2)
        group["log_prob"] = log_p.reshape(n_steps, n_walkers)
        group["accepted"] = np.full(n_walkers, float(n_steps))
    return path


def write_montepython(folder: Path, lengths=(300, 200)):
    folder.mkdir(exist_ok=True)
    for number, n in enumerate(lengths, start=1):
        x, log_l, _ = draws(n, seed=number)
        np.savetxt(folder / f"2026-01-01_1000__{number}.txt", np.column_stack([np.ones(n), -log_l, x, x[:, 0] + 1]))
    (folder / "log.param").write_text(
        "#-----CLASS 3.0 -----\ndata.experiments=['fake']\n"
        "data.parameters['nuisance'] = [0.0, -5, 5.0, 0.1, 1, 'nuisance']\n"
        "data.parameters['omega_b'] = [2.2, -5, 5, 0.02, 0.01, 'cosmo']\n"
        "data.parameters['fixed'] = [2.2, None, None, 0, 1, 'cosmo']\n"
        "data.parameters['H0'] = [0, None, None, 0, 1, 'derived']\n"
        "data.cosmo_arguments['k_pivot'] = 0.05\n"
    )
    return folder


def nested_run(n_live=100, n_dead=1200, shrink=1.0, seed=0):
    """Nested sampling of a standard normal in the box by exact draws from each contour: rows ``(x, y, ln L, ln L at birth)``.

    With ``shrink`` below one new points come from a smaller circle than they should.
    """
    rng = np.random.default_rng(seed)

    def log_l(x):
        return -0.5 * (x**2).sum(axis=-1) - np.log(2 * np.pi)

    live = rng.uniform(-5, 5, size=(n_live, 2))
    birth = np.full(n_live, -1e30)
    values, dead = log_l(live), []
    for _ in range(n_dead):
        worst = int(np.argmin(values))
        dead.append([*live[worst], values[worst], birth[worst]])
        radius = np.sqrt(-2 * (values[worst] + np.log(2 * np.pi)))
        while True:
            new = rng.uniform(-1, 1, size=2) * min(radius, 5.0) * shrink
            if log_l(new) > values[worst]:
                break
        birth[worst], live[worst], values[worst] = values[worst], new, log_l(new)
    order = np.argsort(values)
    return np.array(dead), np.column_stack([live, values, birth])[order]


def write_polychord(root: Path, **run):
    dead, live = nested_run(**run)
    np.savetxt(f"{root}_dead-birth.txt", dead)
    np.savetxt(f"{root}_phys_live-birth.txt", live)
    Path(f"{root}.paramnames").write_text("a  \\alpha\nb\n")
    return root
