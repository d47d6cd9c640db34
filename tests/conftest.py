"""Settings that all tests share."""

import pytest
import torch
from hypothesis import settings

settings.register_profile("transprune", deadline=None)  # no test asserts on a time
settings.load_profile("transprune")

HEART = {
    "alignment",
    "axes",
    "budget",
    "derivation",
    "expected_cost",
    "golden",
    "mixtures",
    "penalty",
    "sampling",
    "space",
}
"""Files that `make quick` runs: the formulas of the paper, reading, costs, and the architecture that keeps a budget."""
LARGE = (
    *("164", "110", "56", "papers", "large_spaces", "random_spaces", "counters", "of_parameters", "by_hand"),
    *("budget_allows", "never_exceeds", "without_time", "equal_probabilities", "many_candidates"),
)
"""Parts of the names of tests that `make quick` leaves out of these files: they take seconds each."""


def pytest_ignore_collect(collection_path, config):
    if config.option.markexpr == "heart" and collection_path.suffix == ".py":
        return collection_path.stem.removeprefix("test_") not in HEART or None
    return None


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.stem.removeprefix("test_") in HEART and not any(part in item.name for part in LARGE):
            item.add_marker(pytest.mark.heart)


@pytest.fixture(autouse=True)
def _few_threads():
    """Two threads: what a small machine has, so that results do not depend on where the tests run."""
    before = torch.get_num_threads()
    torch.set_num_threads(min(2, before))
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def few_digits():
    """A fifth of scikit-learn's digits instead of all, for modules that need whole runs and not what they learn."""
    from sklearn import datasets
    from sklearn.utils import Bunch

    whole = datasets.load_digits()
    few = Bunch(**whole | {name: whole[name][:360] for name in ("data", "images", "target")})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets, "load_digits", lambda: few)
        yield
