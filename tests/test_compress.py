"""A network made smaller without training: in Python, on the command line, and at another budget."""

import copy
import json
from unittest import mock

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import transprune
from transprune.cli import main
from transprune.data import LoaderData, load_data, make_loader
from transprune.errors import BudgetError, DataError, OptionError, RunFolderError, SpaceError
from transprune.runs import compression, steps
from transprune.scores.compress import gather_labelled, gather_samples
from transprune.training.tasks import classification

NET = """
from torch import nn

def build():
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 24, 3, padding=1, stride=2), nn.BatchNorm2d(24), nn.ReLU(),
        nn.Conv2d(24, 24, 3, padding=1), nn.BatchNorm2d(24), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(96, 10),
    )
"""
TRAINING = transprune.TrainingOptions(epochs=4, batch_size=64, warm_up_epochs=1, evaluate_every=4)


@pytest.fixture(scope="module")
def digits():
    return load_data("digits")


@pytest.fixture(scope="module")
def trained(digits) -> nn.Module:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    names: dict = {}
    exec(NET, names)
    return transprune.train(names["build"](), digits, TRAINING)


@pytest.fixture(scope="module")
def half(trained, digits):
    return transprune.compress(trained, digits, "macs=0.5", samples=128)


@pytest.fixture(scope="module")
def place(trained, tmp_path_factory):
    """A folder with a network, its weights, images without labels, and a compressed run."""
    place = tmp_path_factory.mktemp("compressed")
    (place / "net.py").write_text(NET)
    save_file(trained.state_dict(), place / "trained.safetensors")
    images = load_data("digits").test.images[:40, 0].numpy()
    (place / "photos" / "more").mkdir(parents=True)
    for number, image in enumerate(images):
        Image.fromarray(image).save(place / "photos" / ("more" if number % 2 else "") / f"{number}.png")
    command(place, "run", "--data", "digits", "--distill.epochs", "1", "--distill.warm-up-epochs", "0")
    return place


def command(place, out, *more, weights=True, budget="macs=0.5"):
    given = ["--weights", str(place / "trained.safetensors")] if weights else []
    model = f"{place / 'net.py'}:build"
    main(["compress", model, *given, "--budget", budget, "--samples", "128", "--out", str(place / out), *more])


def top1(network, data) -> float:
    return transprune.evaluate(network, data).top1


def test_a_budget_is_kept_without_training(half, trained, digits):
    macs = transprune.count_macs(half.student, torch.zeros(1, 1, 8, 8))
    assert half.spent == (macs,)
    assert macs <= half.limits[0].most
    assert top1(half.student, digits) >= top1(trained, digits) - 8
    assert str(half) == repr(half)
    assert f"{macs:,} MACs of at most" in str(half)
    assert len(str(half)) < 120


def test_several_budgets_are_kept(trained, digits):
    found = transprune.compress(trained, digits, ["macs=0.5", "params=0.4"], samples=64)
    assert all(spent <= limit.most for spent, limit in zip(found.spent, found.limits, strict=True))
    assert [limit.cost.kind for limit in found.limits] == ["macs", "params"]


def test_nothing_of_the_callers_is_changed(trained, digits):
    trained.train()
    before = {name: tensor.clone() for name, tensor in trained.state_dict().items()}
    images = digits.train.images[:64].float() / 255
    kept = images.clone()
    transprune.compress(trained, images, "macs=0.5")
    assert trained.training
    assert torch.equal(images, kept)
    assert all(torch.equal(tensor, before[name]) for name, tensor in trained.state_dict().items())


def test_the_smallest_network_that_loses_little_is_found(trained, digits):
    found = transprune.smallest(trained, digits, 2.0, samples=128)
    assert found.metric == "top1"
    assert found.before == top1(trained, digits)
    assert found.before - top1(found.student, digits) <= 2.0
    assert found.compression.spent[0] <= found.compression.limits[0].most
    tried = {each.budget.amount: each for each in found.tried}
    assert tried[found.budget.amount].lost == pytest.approx(found.before - top1(found.student, digits))
    below = round(found.budget.amount - 0.01, 2)
    assert tried[below].lost > 2.0  # a hundredth less was tried, and is too small
    assert len(tried) == len(found.tried) <= 9


def test_of_an_error_less_is_better(trained, digits):
    def errors(outputs, labels):
        return (outputs.argmax(1) != labels).float() * 100

    task = transprune.Task(loss=torch.nn.functional.cross_entropy, metrics={"errors": errors}, outputs="logits")
    found = transprune.smallest(trained, digits, 2.0, "params", samples=64, task=task)
    assert found.before == pytest.approx(100 - top1(trained, digits))
    assert 100 - top1(found.student, digits) - found.before <= 2.0
    assert max(each.lost for each in found.tried) > 2.0


def test_a_training_decides_what_is_lost(trained, digits):
    seen = []

    def restored(student):
        seen.append(student)
        return trained

    found = transprune.smallest(trained, digits, 0, samples=64, train=restored)
    assert found.student is trained
    assert [each.lost for each in found.tried] == [0.0]  # the smallest of all is as good
    assert found.compression.student is seen[0]


def test_what_may_be_lost_is_asked_on_the_command_line(place, capsys):
    command(place, "small", "--data", "digits", "--lose", "2", budget="macs")
    answer = json.loads((place / "small" / "lose.json").read_text())
    result = json.loads((place / "small" / "result.json").read_text())
    assert answer["budget"] == result["budgets"][0]["text"]
    assert result["teacher"]["top1"] - result["student"]["top1"] <= 2.0
    said = capsys.readouterr().err
    assert said.count("little enough") + said.count("too much") == len(answer["tried"])
    assert f"Took the budget {answer['budget']}" in (place / "small" / "report.html").read_text()
    command(place, "small", "--data", "digits", "--lose", "2", budget="macs")  # goes on without looking anew
    assert "too much" not in capsys.readouterr().err


class WritesDown(nn.Module):
    """Counts in buffers and attributes what it has seen, in evaluation as well."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 16), nn.Linear(16, 3)
        self.register_buffer("seen", torch.zeros(16))
        self.register_buffer("calls", torch.tensor(0))
        self.kept: list[int] = []

    def forward(self, inputs):
        features = self.first(inputs).relu()
        self.seen += features.detach().sum(0)
        self.calls = self.calls + 1
        self.kept.append(len(inputs))
        return self.last(features)


SAMPLES = torch.randn(32, 6, generator=torch.Generator().manual_seed(0))
LABELLED = [(SAMPLES, torch.arange(32) % 3)]
RUNNING = {
    "count_macs": lambda model, _: transprune.count_macs(model, SAMPLES),
    "compress": lambda model, _: transprune.compress(model, SAMPLES, "macs=0.5"),
    "score": lambda model, space: transprune.score(model, space, SAMPLES),
    "repair": lambda model, space: transprune.repair(
        transprune.shrink(model, space.smallest_architecture(), SAMPLES), model, space.smallest_architecture(), SAMPLES
    ),
    "evaluate": lambda model, _: transprune.evaluate(model, LoaderData(train=LABELLED, test=LABELLED, example=SAMPLES)),
}


@pytest.mark.parametrize("verb", RUNNING)
def test_what_a_forward_writes_down_is_put_back(verb):
    torch.manual_seed(0)
    model = WritesDown()
    space = transprune.inspect(model, SAMPLES)
    seen, calls = model.seen, model.calls
    RUNNING[verb](model, space)
    assert model.seen is seen
    assert not seen.any()
    assert model.calls is calls
    assert model.kept == []
    assert model.training


def test_hooks_of_the_callers_collect_in_an_evaluation():
    model, collected = WritesDown(), []
    model.first.register_forward_hook(lambda module, inputs, outputs: collected.append(outputs.shape))
    RUNNING["evaluate"](model, None)
    assert collected == [(32, 16)]


def test_another_budget_from_the_same_scores_is_what_compressing_gives(half, trained, digits):
    derived = transprune.compress(trained, digits, "macs=0.3", samples=128, scores=half.scores)
    anew = transprune.compress(trained, digits, "macs=0.3", samples=128)
    assert derived.scores == half.scores
    assert derived.spent[0] <= derived.limits[0].most
    assert derived.moved <= 1.2 * anew.moved
    assert abs(top1(derived.student, digits) - top1(anew.student, digits)) < 5


def test_a_whole_result_saves_reading_the_network_again(half, trained, digits, monkeypatch):
    by_scores = transprune.compress(trained, digits, "macs=0.3", samples=128, scores=half.scores)
    monkeypatch.setattr("transprune.reading.reading._read_with", lambda *_: pytest.fail("read anew"))
    by_result = transprune.compress(trained, digits, "macs=0.3", samples=128, scores=half)
    assert by_result.architecture == by_scores.architecture
    assert by_result.moved == by_scores.moved


def test_another_budget_runs_the_unpruned_network_no_more(half, trained, digits, monkeypatch):
    calls = []
    monkeypatch.setattr("transprune.scores.evidence.record_targets", lambda *_: calls.append(1) or pytest.fail("ran"))
    transprune.compress(trained, digits, "macs=0.4", samples=128, scores=half)
    assert not calls


@pytest.mark.parametrize("changed", ["weights", "buffers", "samples", "number of samples"])
def test_what_was_seen_of_another_network_or_other_samples_is_not_taken(half, trained, digits, changed):
    network, seed, samples = trained, 0, 128
    with torch.no_grad():
        if changed == "weights":
            network = copy.deepcopy(trained)
            kept = transprune.compress(network, digits, "macs=0.5", samples=samples)
            network[0].weight.data *= 1.5
        elif changed == "buffers":
            network = copy.deepcopy(trained)
            kept = transprune.compress(network, digits, "macs=0.5", samples=samples)
            next(network.buffers()).data += 0.5
        else:
            kept, seed, samples = half, int(changed == "samples"), 96 if changed == "number of samples" else 128
    found = transprune.compress(network, digits, "macs=0.4", samples=samples, scores=kept, seed=seed)
    anew = transprune.compress(network, digits, "macs=0.4", samples=samples, scores=kept.scores, seed=seed)
    assert found.halves is not kept.halves
    assert found.moved == anew.moved


def test_what_was_seen_is_not_kept_where_it_is_large(half, trained, digits, monkeypatch):
    halves = transprune.compress(trained, digits, "macs=0.4", samples=128, scores=half).halves
    monkeypatch.setattr("transprune.scores.rounds.MOST_BYTES", 1000)
    kept = transprune.compress(trained, digits, "macs=0.5", samples=128)
    assert kept.halves is None
    whole, others = halves.all_targets, halves.others
    held = [*whole.wanted.values(), whole.outputs, *halves.targets.wanted.values(), halves.targets.outputs]
    held += [others.wanted, *others.inputs, *halves.all_inputs]
    assert halves.bytes == sum(each.nbytes for each in held)
    assert transprune.compress(trained, digits, "macs=0.4", samples=128, scores=kept).spent


def test_repair_can_be_left_out_and_is_worth_something(half, trained, digits):
    plain = transprune.compress(trained, digits, "macs=0.5", samples=128, scores=half.scores, repair=False)
    assert plain.architecture == half.architecture
    assert plain.moved > 2 * half.moved
    assert torch.equal(plain.student[0].weight, half.sorted_model[0].weight[: plain.student[0].out_channels])


def test_samples_come_from_anything(trained, digits):
    loader = make_loader(digits.train, digits, batch_size=32, train=False, seed=0, device="cpu")
    batches = [images for images, _ in loader]
    pairs = [(images, labels) for images, labels in loader]
    data = LoaderData(train=pairs, test=pairs, example=batches[0])
    whole = TensorDataset(*(torch.cat(each) for each in zip(*pairs, strict=True)))
    loaders = DataLoader(whole, 32), DataLoader(whole, 64)
    of_two = [loaders, (whole, whole), {"train": loaders[0]}]
    for source in (batches, pairs, data, iter(batches), torch.cat(batches[:4]), *of_two):
        (found,), _ = gather_samples(trained, source, 100, task=classification(), seed=0)
        assert found.shape == (100, 1, 8, 8)
    for source in (pairs, data, loaders):
        gathered = gather_labelled(trained, source, 100, task=classification(), seed=0, has_labels=True)
        assert torch.equal(gathered[2], whole.tensors[1][:100])
    (first,), _ = gather_samples(trained, digits, 100, task=classification(), seed=0)
    (again,), _ = gather_samples(trained, digits, 100, task=classification(), seed=0)
    (other,), _ = gather_samples(trained, digits, 100, task=classification(), seed=1)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


class OnAGraph(nn.Module):
    """Takes figures [nodes, ...] and edges [2, edges]; no axis counts samples."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, 12), nn.Linear(12, 3)

    def forward(self, nodes, edges):
        features = self.first(nodes).relu()
        sent = torch.zeros_like(features).index_add(0, edges[1], features[edges[0]])
        return self.last(features + sent)


ON_A_GRAPH = transprune.Task(loss=lambda outputs, targets: (outputs - targets).square().mean(), split=lambda pair: pair)


@pytest.mark.parametrize("nodes", [20, 700])
@pytest.mark.parametrize("form", ["batches", "LoaderData"])
def test_a_graph_is_taken_whole(nodes, form):
    torch.manual_seed(0)
    graph = torch.randn(nodes, 5), torch.randint(nodes, (2, 60))
    batches = [(graph, torch.zeros(nodes, 3))] * 2
    data = LoaderData(train=batches, test=batches, example=graph) if form == "LoaderData" else [graph]
    found = transprune.compress(OnAGraph(), data, "macs=0.5", task=ON_A_GRAPH)
    assert found.spent == (transprune.count_macs(found.student, graph),)
    assert found.student(*graph).shape == (nodes, 3)


def test_a_search_scores_on_a_whole_graph():
    torch.manual_seed(0)
    graph = torch.randn(700, 5), torch.randint(700, (2, 60))
    batches = [(graph, torch.zeros(700, 3))]
    data = LoaderData(train=batches, test=batches, search=(batches, batches), example=graph)
    options = transprune.SearchOptions(epochs=1, warm_up_epochs=0, start="model", prior="scores", trial_epochs=0)
    found = transprune.search(OnAGraph(), data, "macs=0.5", options, task=ON_A_GRAPH)
    assert found.actual <= found.target


def test_a_mask_beside_the_tokens_is_an_input():
    class Masked(nn.Module):
        def forward(self, tokens, mask):
            return tokens * mask

    batch = (torch.ones(20, 3), torch.zeros(20, 3))
    assert len(gather_samples(Masked(), [batch], 20, task=classification(), seed=0)[0]) == 2


def test_what_cannot_be_compressed_is_refused(half, trained, digits):
    with pytest.raises(DataError, match=r"cannot score a network on 3 samples: expected at least 16"):
        transprune.compress(trained, torch.zeros(3, 1, 8, 8), "macs=0.5")
    with pytest.raises(DataError, match=r"cannot take samples from a tuple of a str; expected tensors"):
        transprune.compress(trained, [("a", "b")], "macs=0.5")
    with pytest.raises(DataError, match=r"cannot take samples from a int"):
        transprune.compress(trained, 3, "macs=0.5")
    with pytest.raises(OptionError, match=r"cannot use samples=3: expected at least 16"):
        transprune.compress(trained, digits, "macs=0.5", samples=3)
    with pytest.raises(BudgetError, match=r"cannot keep the budget macs=0.0001"):
        transprune.compress(trained, digits, "macs=0.0001", samples=32)
    coarse = transprune.inspect(trained, torch.zeros(1, 1, 8, 8), ratios=(0.5, 1.0))
    with pytest.raises(SpaceError, match=r"cannot derive from these scores"):
        transprune.compress(trained, digits, "macs=0.5", space=coarse, scores=half.scores, samples=32)


# --- on the command line


def test_a_run_folder_is_like_that_of_a_run(place, digits, capsys):
    left = {path.name for path in (place / "run").iterdir()}
    assert left >= {"config.toml", "space.json", "scores.json", "architecture.json", "report.html", "run.log"}
    assert left >= {"teacher.safetensors", "student.safetensors", "student.onnx", "student.pt2", "journal.jsonl"}
    result = json.loads((place / "run" / "result.json").read_text())
    assert result["is_trained"] is False
    assert result["student"]["macs"] <= result["budgets"][0]["target"]
    assert result["student"]["top1"] >= result["teacher"]["top1"] - 8
    assert "Nothing was trained" in (place / "run" / "report.html").read_text()
    command(place, "run", "--data", "digits", "--distill.epochs", "1", "--distill.warm-up-epochs", "0")
    assert "nothing was trained" in capsys.readouterr().out
    student = transprune.load(place / "run", model=built(place))
    assert top1(student, digits) == pytest.approx(result["student"]["top1"])


def built(place) -> nn.Module:
    names: dict = {}
    exec((place / "net.py").read_text(), names)
    return names["build"]()


def test_derive_gives_another_budget_without_the_data(place, monkeypatch, capsys):
    monkeypatch.setattr("transprune.runs.material.load_data", None)
    main(["derive", str(place / "run"), "--budget", "macs=0.3", "--out", str(place / "third"), "--overwrite"])
    assert "transprune distill" in capsys.readouterr().out
    student = transprune.load(place / "third", model=built(place))
    whole = transprune.count_macs(built(place), torch.zeros(1, 1, 8, 8))
    assert transprune.count_macs(student, torch.zeros(1, 1, 8, 8)) <= 0.3 * whole


def test_a_distillation_goes_on_from_the_compressed_student(place, capsys):
    main(["derive", str(place / "run"), "--budget", "macs=0.4", "--out", str(place / "on"), "--overwrite"])
    compressed = load_file(place / "on" / "compressed.safetensors")
    student = place / "on" / "student.safetensors"
    assert all(torch.equal(tensor, compressed[name]) for name, tensor in load_file(student).items())
    main(["distill", str(place / "on")])
    assert any(not torch.equal(tensor, compressed[name]) for name, tensor in load_file(student).items())
    trained = student.read_bytes()
    main(["distill", str(place / "on")])
    assert student.read_bytes() == trained
    capsys.readouterr()
    main(["evaluate", str(place / "on"), "--json"])
    assert json.loads(capsys.readouterr().out)["is_trained"] is True


def test_images_without_labels_will_do(place, capsys):
    command(place, "unlabelled", "--data", f"images:{place / 'photos'}", "--image-size", "1", "8", "8")
    assert "without labels: the student answers as the teacher on" in capsys.readouterr().out
    result = json.loads((place / "unlabelled" / "result.json").read_text())
    assert "top1" not in result["student"]
    assert result["agreement"] > 80
    described = json.loads((place / "unlabelled" / "architecture.json").read_text())
    assert described["model"]["classes"] == 10
    told = (place / "unlabelled" / "report.html").read_text()
    assert "answers as the teacher" in told
    assert "cut and fitted to the samples" in told
    with pytest.raises(SystemExit, match="2"):
        main(["distill", str(place / "unlabelled")])
    assert "they have no labels" in capsys.readouterr().err


def test_images_are_normalised_as_the_network_expects(place, monkeypatch):
    monkeypatch.setattr(steps, "export_step", lambda _: None)  # the longest of all, and of no concern here
    sizes = ["--image-size", "1", "8", "8", "--mean", "0.5", "--std", "0.25", "--no-repair"]
    command(place, "normalised", "--data", f"images:{place / 'photos'}", *sizes)
    described = json.loads((place / "normalised" / "architecture.json").read_text())
    assert (described["preprocessing"]["mean"], described["preprocessing"]["std"]) == ([0.5], [0.25])
    data = load_data("digits", image_size=(3, 8, 8), mean="imagenet", std="none")
    assert data.mean == (0.485, 0.456, 0.406)
    assert data.std == (1.0, 1.0, 1.0)


OWN = """
import torch, transprune
from torch import nn

class Residual(nn.Module):
    def __init__(self, share):
        super().__init__()
        self.inner, self.share = nn.Linear(6, 6, bias=False), share

    def forward(self, x):
        return x + self.share * self.inner(x)

def build():
    torch.manual_seed(0)
    return nn.Sequential(nn.Sequential(*map(Residual, (0.3, 1.0, 0.05))))

def data():  # as if the second and the third block had learned nothing but mistakes
    numbers = torch.randn(64, 6, generator=torch.Generator().manual_seed(0))
    right = numbers + 0.3 * build()[0][0].inner(numbers)
    loader = [(numbers, {"values": right.detach()})]
    return loader, loader

def task():
    plain = transprune.regression()
    return transprune.Task(loss=lambda outputs, targets: plain.loss_of(outputs, targets["values"]))
"""


def test_the_loss_decides_on_the_command_line_too(tmp_path, monkeypatch, capsys):
    for left_out in ("export_step", "report_step"):
        monkeypatch.setattr(steps, left_out, lambda _: None)
    (tmp_path / "own.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(OWN, names)
    save_file(names["build"]().state_dict(), "own.safetensors")
    given = ["--data", "own.py:data", "--task", "own.py:task", "--weights", "own.safetensors", "--only", "0"]
    main(["compress", "own.py:build", *given, "--budget", "params=0.7", "--no-repair", "--by-loss", "--out", "by-loss"])
    assert "cut and else as they were" in " ".join("".join(capsys.readouterr()).split())
    found = json.loads((tmp_path / "by-loss" / "architecture.json").read_text())
    assert found["blocks"] == {"0": ["0.0", "0.2"]}  # the outputs move less without the last one
    assert "it has the least loss on half of the samples" in (tmp_path / "by-loss" / "journal.jsonl").read_text()
    by_scores = mock.Mock(side_effect=compression.compress_by_scores)
    monkeypatch.setattr(compression, "compress_by_scores", by_scores)
    main(["derive", "by-loss", "--budget", "params=0.4", "--out", "third"])
    assert torch.equal(by_scores.call_args.kwargs["targets"]["values"], names["data"]()[0][0][1]["values"])


def test_another_budget_from_a_finished_search(tmp_path, place, capsys):
    short = ["--search.epochs", "2", "--search.warm-up-epochs", "0", "--search.batch-size", "128"]
    short += ["--search.prior", "none", "--data", "digits"]
    weights = ["--weights", str(place / "trained.safetensors")]
    model, out = f"{place / 'net.py'}:build", str(tmp_path / "searched")
    main(["search", model, *weights, "--budget", "macs=0.5", "--out", out, "--preset", "quick", *short])
    main(["derive", out, "--budget", "macs=0.3", "--out", str(tmp_path / "third")])
    assert "transprune distill" in capsys.readouterr().out
    space = transprune.SearchSpace.from_json((tmp_path / "third" / "space.json").read_text())
    chosen = transprune.Architecture.from_json((tmp_path / "third" / "architecture.json").read_text())
    limit = transprune.Budget.parse("macs=0.3").limit(space)
    assert limit.is_kept(space, chosen)
    assert (tmp_path / "third" / "supernet.safetensors").exists()
    with pytest.raises(RunFolderError, match="its journal has no probabilities of a search"):
        compression.derive_run(tmp_path / "third", ["macs=0.4"], tmp_path / "fourth")


@pytest.mark.parametrize(
    ("more", "problem"),
    [
        ({"weights": False}, "no weights of it are given; expected a network that is trained"),
        ({"budget": "macs=0.00001"}, "cannot keep the budget"),
        ({"more": ("--samples", "3")}, "cannot use samples=3: expected at least 16"),
        ({"more": ("--data", "images:empty")}, "there is no image in it or below"),
        ({"more": ("--data", "images:photos", "--by-loss", "--image-size", "1", "8", "8")}, "go by the loss"),
    ],
)
def test_bad_input_is_refused_before_any_work(place, monkeypatch, capsys, more, problem):
    (place / "empty").mkdir(exist_ok=True)
    monkeypatch.chdir(place)
    arguments = dict(more)
    with pytest.raises(SystemExit, match="2"):
        command(place, "refused", "--data", "digits", *arguments.pop("more", ()), **arguments)
    assert problem in capsys.readouterr().err
    assert not (place / "refused").exists()


def test_a_run_needs_labels(place, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["run", "resnet20", "--data", f"images:{place / 'photos'}", "--budget", "macs=0.5", "--out", "never"])
    assert "they have no labels" in capsys.readouterr().err
