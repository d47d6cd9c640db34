"""Settings that all tests share."""

from functools import cache

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
LONG = (
    *("test_tutorials.py::test_the_tutorial_on", "docs/compress.md", "docs/command-line.md", "docs/tutorials/paper.md"),
    *(
        "test_the_exported_model_of_the_tutorial",
        "test_the_tutorial_shows",
        "test_two_nodes_that_share_no_disk",
        "is_quantised_to_a_third",
    ),
    *(
        "docs/quick-start.md",
        "guide_to_any_model",
        "timm/deit3",
        "unpruned_network_to_the_golden_figures[resnet164-100",
    ),
    *(f"all_are_counted[{name}" for name in ("densenet", "efficientnet", "regnet_y", "mobilenet_v3", "convnext")),
    *("takes_is_known_before_it_is_written[Convolving-True", "guide_to_runtimes", "peak_memory_of_a_process_is"),
    *("a_stage_that_fails_is_said", "papers_shapes[164", "golden_figures[resnet110-10", "two_megabytes[400"),
    *("test_torchrun.py::test_a_process_that_is_killed", "guide_to_watching_a_run", "torchvision/ResNet-resnext"),
    *(
        "timm/convnext_atto",
        "torchvision/mnasnet0_5",
        "SIGTERM-143",
        "stock_network[gpt2",
        "trainer_of_lightning",
        "loop_of_ones_own_ends",
    ),
    *(f"at_random_moments_ends_as_one_left_alone[{seed}]" for seed in range(1, 6)),
)
"""Parts of the ids of tests that `make check` leaves out, and `make test` runs: the longest ones, which go a way from
end to end whose pieces have tests of their own."""


def pytest_addoption(parser):
    parser.addoption("--device", default="cpu", help="where the tests marked `device` compute, such as cuda")


@pytest.fixture(scope="session", autouse=True)
def _operators_of_onnx_listed_once():
    """Each export to ONNX parses the source of some 500 operators anew, which takes as long as the rest of it."""
    try:
        from torch.onnx._internal.exporter._registration import onnxscript_apis

        listed = onnxscript_apis.get_torchlib_ops
    except (ImportError, AttributeError):  # another version of torch; exports take longer then
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnxscript_apis, "get_torchlib_ops", cache(listed))
        yield


@pytest.fixture(scope="session")
def device(pytestconfig):
    """The device of `--device`."""
    return pytestconfig.getoption("--device")


def pytest_ignore_collect(collection_path, config):
    if config.option.markexpr == "heart" and collection_path.suffix == ".py":
        return collection_path.stem.removeprefix("test_") not in HEART or None
    return None


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.stem.removeprefix("test_") in HEART and not any(part in item.name for part in LARGE):
            item.add_marker(pytest.mark.heart)
        if any(part in item.nodeid for part in LONG):
            item.add_marker(pytest.mark.long)


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
