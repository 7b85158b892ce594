"""Two-sample tests: alarms as rare as stated, power, known values, errors that teach."""

import numpy as np
import pytest
from scipy import stats

from sbi_flows.diagnostics import c2st, hellinger_joint, mmd, wasserstein, wasserstein2
from sbi_flows.diagnostics.classifiers import cross_validated_scores


def normal(seed, n, d=2, mean=0.0, scale=1.0):
    return np.random.default_rng(seed).normal(mean, scale, size=(n, d))


@pytest.mark.parametrize(
    ("test", "repeats"),
    [(lambda x, y, s: c2st(x, y, classifier="gradient boosting", random_state=s), 20), (lambda x, y, s: mmd(x, y, random_state=s), 40)],
    ids=["c2st", "mmd"],
)
def test_p_values_of_one_distribution_are_not_too_small(test, repeats):
    """One-sided Kolmogorov-Smirnov: false alarm 1e-4."""
    p_values = [test(normal(2 * s, 100), normal(2 * s + 1, 100), s).p_value for s in range(repeats)]
    assert stats.kstest(p_values, "uniform", alternative="greater").pvalue > 1e-4


@pytest.mark.parametrize("classifier", ["mlp", "gradient boosting"])
def test_c2st_nears_the_best_possible_accuracy_and_says_so(classifier):
    x, y = normal(0, 500), normal(1, 500, mean=1.0)
    result = c2st(x, y, classifier=classifier, random_state=0)
    best = stats.norm.cdf(np.sqrt(2) / 2)
    # Three standard errors of 1000 rows above; a finite classifier may fall 5 % short below.
    assert best - 0.09 < result.accuracy < best + 0.04
    assert result.low < result.accuracy < result.high
    assert result.p_value < 1e-3
    assert not result.reliability.ok
    assert result.scores.shape == (1000,)
    assert result.scores[500:].mean() > result.scores[:500].mean()


def test_c2st_is_the_benchmarks():
    """The benchmark's recipe written out: reference z-scores, five shuffled folds, mean accuracy of the classifier."""
    from sklearn.model_selection import KFold, cross_val_score
    from sklearn.neural_network import MLPClassifier

    x, y = normal(0, 200, scale=3.0), normal(1, 200, mean=0.8, scale=3.0)
    rows = (np.concatenate([x, y]) - x.mean(0)) / x.std(0, ddof=1)
    model = MLPClassifier((20, 20), max_iter=1000, random_state=5)
    folds = KFold(5, shuffle=True, random_state=5)
    expected = cross_val_score(model, rows, np.repeat([0, 1], 200), cv=folds, scoring="accuracy").mean()
    assert c2st(x, y, random_state=5).accuracy == pytest.approx(expected, abs=1e-12)


def test_each_fold_is_an_exact_test():
    """Fold p-values against those of many random arrangements of held-out labels."""
    x, y = normal(0, 60), normal(1, 60, mean=0.3)
    scores, _, p_values, _ = cross_validated_scores(x, y, "gradient boosting", 2, 0)
    from sklearn.model_selection import KFold

    labels = np.repeat([False, True], 60)
    rng = np.random.default_rng(0)
    for p_value, (_, test) in zip(p_values, KFold(2, shuffle=True, random_state=0).split(labels[:, None]), strict=True):
        guessed, true = scores[test] > 0.5, labels[test]
        observed = np.mean(guessed == true)
        shuffled = np.array([np.mean(guessed == rng.permutation(true)) for _ in range(4000)])
        assert p_value == pytest.approx(np.mean(shuffled >= observed), abs=0.03)


def test_mmd_of_gaussians_has_its_closed_form():
    """For N(0,1) and N(mu,1) and a kernel of bandwidth h: 2 h / sqrt(h^2 + 2) (1 - exp(-mu^2 / (2 (h^2 + 2))))."""
    values = []
    for s in range(20):
        x, y = normal(2 * s, 400, d=1), normal(2 * s + 1, 400, d=1, mean=1.0)
        pooled = np.concatenate([x, y]).std()
        # Bandwidth 1 in the data's own units.
        values.append(mmd(x, y, bandwidth=1 / pooled, n_permutations=1, random_state=s).mmd2)
    expected = 2 / np.sqrt(3) * (1 - np.exp(-1 / 6))
    assert np.mean(values) == pytest.approx(expected, abs=4 * np.std(values) / np.sqrt(20))


def test_mmd_sees_what_marginals_do_not():
    x = normal(0, 300)
    y = x[:150] @ np.array([[1, 0.9], [0, np.sqrt(1 - 0.81)]])
    result = mmd(x[150:], y, random_state=0)
    assert result.p_value == 0.001
    assert result.null.shape == (999,)
    assert result.p_value == (1 + np.sum(result.null >= result.mmd2)) / 1000


def test_copies_in_one_sample_are_told():
    """A classifier learns resampled rows by heart: the verdict must not say that the distributions differ."""
    rng = np.random.default_rng(0)
    x, few = rng.normal(size=(1000, 2)), rng.normal(size=(130, 2))
    (reason,) = c2st(x, few[rng.integers(130, size=1000)], classifier="gradient boosting", random_state=0).reliability.reasons
    assert "by copies, it may be, as 87% of the rows of y repeat others" in reason
    (reason,) = c2st(x, x + 3, classifier="gradient boosting", random_state=0).reliability.reasons
    assert "not one distribution" in reason


def test_constant_columns_are_no_harm():
    x, y = np.zeros((100, 2)), np.zeros((100, 2))
    assert mmd(x, y, random_state=0).p_value == 1.0
    assert c2st(x, y, classifier="gradient boosting", random_state=0).reliability.ok


@pytest.mark.parametrize("method", ["neighbours", "classifier"])
def test_joint_hellinger_of_gaussians(method):
    distance, floor = hellinger_joint(normal(0, 3000), normal(1, 3000, mean=1.0), method=method, random_state=0)
    assert distance == pytest.approx(np.sqrt(1 - np.exp(-2 / 8)), abs=0.04)
    assert floor < 0.12


def test_wasserstein_distances_of_a_shift():
    x = normal(0, 300)
    np.testing.assert_allclose(wasserstein(x, x + np.array([1.0, 2.0])), [1.0, 2.0])
    assert wasserstein2(x, x + np.array([3.0, 4.0])) == pytest.approx(5.0)


@pytest.mark.parametrize("test", [c2st, mmd, hellinger_joint, wasserstein])
def test_errors_teach(test):
    x = normal(0, 100)
    with pytest.raises(ValueError, match="same columns"):
        test(x, x[:, :1])
    with pytest.raises(ValueError, match="column 1 has 1 NaN"):
        test(np.where(np.arange(200).reshape(100, 2) == 5, np.nan, x), x)
    with pytest.raises(ValueError, match=r"x of shape \(n, d\)"):
        test(x[:, 0], x)


def test_names_of_methods_are_checked():
    x = normal(0, 100)
    with pytest.raises(ValueError, match="'mlp', 'gradient boosting'"):
        c2st(x, x, classifier="forest")
    with pytest.raises(ValueError, match="at least 10 rows"):
        c2st(x[:5], x)
    with pytest.raises(ValueError, match="at least 2 folds"):
        c2st(x, x, n_folds=1)
    with pytest.raises(ValueError, match="'neighbours', 'classifier'"):
        hellinger_joint(x, x, method="kernel")


@pytest.mark.parametrize("d", [4, 8])
def test_rows_of_one_in_the_other_do_not_make_the_joint_distance_infinite(d):
    """Chains that stayed where they were: ten copies of each row, spread over both samples; they show no density and no warning."""
    rows = np.repeat(normal(0, 300, d), 10, axis=0)
    x, y = (np.concatenate([rows, normal(seed, 1000, d)]) for seed in (1, 2))
    distance, floor = hellinger_joint(x, y, random_state=0)
    assert 0 <= floor < 0.6 and 0 <= distance < 0.6
