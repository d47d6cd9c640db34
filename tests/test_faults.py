"""Numbers that are not finite, data that do not suit, memory that runs out: noticed at once, said in full, survived."""

import gc
import multiprocessing
import os
import pickle
import select
import signal
import sys
import threading
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

import torture
import transprune
from test_resume import SEARCH, StopsAfter
from test_searching import Residual
from test_training import SHORT, assert_same_state, small_network, two_colours
from transprune import cli
from transprune.data import ImageData, LoaderData, MemorySplit, image_batches, load_data, make_loader
from transprune.data.image_batches import workers_that_fit
from transprune.errors import DataError, DivergenceError, ModelError, OptionError, ResourceError, StoppedError
from transprune.models.weights import load_weights
from transprune.options import CheckpointOptions
from transprune.runtime import Checkpoints, interruption
from transprune.training.batches import feed
from transprune.training.faults import MOST_SKIPPED
from transprune.training.loop import Setup
from transprune.training.tasks import classification
from transprune.training.update import cosine_schedule

OPTIONS = transprune.TrainingOptions(**SHORT | {"epochs": 2})
DISTILLATION = transprune.DistillationOptions(**SHORT | {"epochs": 2})


def batches_with(bad, *, at=2, count=6, classes=2):
    """Batches for `small_network`, of which one holds numbers that are not finite."""
    generator = torch.Generator().manual_seed(0)
    batches = [(torch.randn(8, 1, 4, 4, generator=generator), torch.arange(8) % classes) for _ in range(count)]
    batches[at][0][3, 0, 1, 1] = bad
    halves = batches[: count // 2], batches[count // 2 :]
    return LoaderData(train=batches, test=[batches[0]], search=halves, example=torch.zeros(1, 1, 4, 4))


# --- divergence -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_seen_in_their_step_and_the_layer_is_named(bad):
    message = (
        r"^cannot go on with phase 'teacher', epoch 1, step 3: the loss is nan; the output of the layer '0' is the "
    )
    with pytest.raises(DivergenceError, match=message):
        transprune.train(small_network(), batches_with(bad), OPTIONS)


def test_a_gradient_that_is_not_finite_is_seen_though_the_loss_is():
    class Bad(torch.autograd.Function):
        @staticmethod
        def forward(context, values):
            return values.clone()

        @staticmethod
        def backward(context, gradient):
            return gradient * float("inf")

    class Network(nn.Sequential):
        def forward(self, images):
            features = self[2](self[1](self[0](images)))
            return self[4](self[3](Bad.apply(features)))

    network = Network(*small_network())
    with pytest.raises(DivergenceError, match=r"the gradient of '1\.bias' is the first that is not finite"):
        transprune.train(network, two_colours(), OPTIONS)


def test_a_search_that_diverges_names_a_layer_too():
    data = batches_with(float("nan"), at=1)
    with pytest.raises(
        DivergenceError, match=r"phase 'search', epoch 1, step 2: the loss is nan; the output of the lay"
    ):
        transprune.search(Residual(), data, "macs=0.5", SEARCH)


def test_a_divergence_leaves_a_checkpoint_from_before_it(tmp_path):
    kept = Checkpoints(tmp_path, CheckpointOptions(checkpoint_steps=1))
    data = batches_with(float("nan"), at=4)
    with pytest.raises(DivergenceError, match="the last checkpoint, if one was written, is from before it"):
        transprune.train(small_network(), data, OPTIONS, setup=Setup(checkpoints=kept))
    state = kept.find("teacher")
    assert state["steps"] == 4
    assert all(value.isfinite().all() for value in state["parts"]["network"].values())
    trained = transprune.train(small_network(), data, OPTIONS, setup=Setup(checkpoints=kept, on_divergence="skip"))
    assert all(value.isfinite().all() for value in trained.state_dict().values())


def test_a_skipped_step_leaves_no_trace_but_its_place_in_the_schedule():
    """The slow way to the same weights: the bad batch's gradient is made zero by hand."""
    figures = []
    data = batches_with(float("nan"), at=5)
    options = transprune.TrainingOptions(**SHORT | {"epochs": 2, "momentum": 0.0, "weight_decay": 0.0})
    trained = transprune.train(
        small_network(), data, options, setup=Setup(on_divergence="skip", on_epoch=figures.append)
    )
    network = small_network().train()
    optimizer = torch.optim.SGD(network.parameters(), lr=options.learning_rate)
    schedule = cosine_schedule(optimizer, 6, 2, 1)
    for _ in range(2):
        for inputs, labels in data.train:
            if inputs.isfinite().all():
                optimizer.zero_grad()
                nn.functional.cross_entropy(network(inputs), labels).backward()
                optimizer.step()
            schedule.step()
    assert_same_state(trained.state_dict(), network.state_dict())
    assert [epoch["skipped"] for epoch in figures] == [1, 2]


def test_too_many_bad_steps_in_a_row_stop_even_who_skips():
    data = batches_with(float("nan"), at=1, count=2)
    data = LoaderData(train=[data.train[0]] + [data.train[1]] * 20, test=data.test, example=data.example)
    with pytest.raises(
        DivergenceError, match=f"step {MOST_SKIPPED + 2}: .*{MOST_SKIPPED} steps before it were left out"
    ):
        transprune.train(small_network(), data, OPTIONS, setup=Setup(on_divergence="skip"))


def test_skipping_stopped_and_taken_up_again_equals_skipping(tmp_path):
    data = batches_with(float("nan"), at=2)
    alone = transprune.train(small_network(), data, OPTIONS, setup=Setup(on_divergence="skip"))
    with pytest.raises(StoppedError):
        transprune.train(
            small_network(), data, OPTIONS, setup=Setup(on_divergence="skip", checkpoints=StopsAfter(tmp_path, 4))
        )
    again = transprune.train(
        small_network(), data, OPTIONS, setup=Setup(on_divergence="skip", checkpoints=Checkpoints(tmp_path))
    )
    assert_same_state(alone.state_dict(), again.state_dict())


class UpToFour(nn.Module):
    """Has a shift for each of four samples."""

    def __init__(self):
        super().__init__()
        self.inside, self.last = nn.Linear(16, 8), nn.Linear(8, 2)
        self.register_buffer("shifts", torch.zeros(4, 8))

    def forward(self, images):
        return self.last(self.inside(images.flatten(1)) + self.shifts[: len(images)])


@pytest.mark.parametrize("verb", ["train", "evaluate", "search"])
def test_a_batch_that_the_network_fails_on_is_said_to_be_one(verb):
    images, labels = torch.zeros(6, 1, 4, 4), torch.tensor([0, 1] * 3)
    batches = [(images, labels)]
    data = LoaderData(train=batches, test=batches, search=(batches, batches), example=images[:2])
    call = {
        "train": lambda: transprune.train(UpToFour(), data, OPTIONS),
        "evaluate": lambda: transprune.evaluate(UpToFour(), data),
        "search": lambda: transprune.search(UpToFour(), data, "macs=0.7", SEARCH),
    }[verb]
    with pytest.raises(DataError, match=r"the network fails on it.* \(RuntimeError: .*6.*4"):
        call()


@pytest.mark.parametrize("verb", ["train", "evaluate", "search", "distill"])
def test_what_functions_of_a_task_raise_is_said_with_their_line(verb):
    def lost(outputs, targets):
        return outputs["loss"]

    tasks = {
        "train": transprune.Task(loss=lost),
        "evaluate": transprune.Task(loss=nn.functional.cross_entropy, metrics={"found": lost}),
        "search": transprune.Task(loss=lost),
        "distill": transprune.Task(loss=nn.functional.cross_entropy, distillation_loss=lambda *given: lost(*given[:2])),
    }
    data, task = two_colours(), tasks[verb]
    call = {
        "train": lambda: transprune.train(small_network(), data, OPTIONS, task=task),
        "evaluate": lambda: transprune.evaluate(small_network(), data, task=task),
        "search": lambda: transprune.search(small_network(), data, "macs=0.7", SEARCH, task=task),
        "distill": lambda: transprune.distill(small_network(), small_network(), data, DISTILLATION, task=task),
    }[verb]
    with pytest.raises(DataError, match=r"a loss or metric of the task fails on .* at .*test_faults.py:\d+ \("):
        call()


def test_a_backward_that_fails_is_said_to_be_one():
    class Doubled(nn.Module):
        def forward(self, features):
            return features.mul_(2)

    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 2), nn.Sigmoid(), Doubled())
    with pytest.raises(DataError, match=r"the gradients of its loss cannot be computed \(RuntimeError: one of the"):
        transprune.train(network, two_colours(), OPTIONS)


def test_an_unknown_policy_is_refused():
    with pytest.raises(OptionError, match="cannot use on_divergence='ignore': expected one of stop, skip"):
        transprune.train(small_network(), two_colours(), OPTIONS, setup=Setup(on_divergence="ignore"))


# --- data -------------------------------------------------------------------------------------------------------


def image_folder(place, *, modes=("RGB",), size=(10, 10), per_class=4, classes=("a", "b")):
    """Random images, the modes in turn."""
    draw = np.random.default_rng(0)
    for part in ("train", "val"):
        for name in classes:
            for number in range(per_class):
                path = place / part / name / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                image = Image.fromarray(draw.integers(0, 255, (*size, 3), dtype=np.uint8))
                image.convert(modes[number % len(modes)]).save(path)
    return place


def test_grey_and_transparent_images_become_colours(tmp_path):
    data = load_data(f"imagefolder:{image_folder(tmp_path, modes=('RGB', 'L', 'RGBA', 'P'))}")
    assert data.image_size == (3, 10, 10)
    (images, _), *_ = make_loader(data.train, data, batch_size=8, train=True, seed=0, device="cpu")
    assert images.shape == (8, 3, 10, 10)


@pytest.mark.parametrize("damage", ["cut", "text", "empty"])
@pytest.mark.parametrize("size", [(10, 10), (80, 90)])
def test_an_unreadable_image_is_refused_by_its_path_before_any_training(tmp_path, damage, size):
    bad = image_folder(tmp_path, size=size) / "train" / "b" / "2.png"
    content = bad.read_bytes()
    bad.write_bytes({"cut": content[: len(content) // 2], "text": b"not an image", "empty": b""}[damage])
    with pytest.raises(DataError, match=r"cannot read the image .*train/b/2\.png: .*; expected a complete image file"):
        load_data(f"imagefolder:{tmp_path}")


def test_an_image_that_breaks_during_training_is_named(tmp_path):
    data = load_data(f"imagefolder:{image_folder(tmp_path, size=(80, 90))}", image_size=(3, 70, 70))
    (tmp_path / "train" / "a" / "1.png").write_bytes(b"gone")
    with pytest.raises(DataError, match=r"cannot read the image .*train/a/1\.png"):
        transprune.train(convolution(), data, OPTIONS)


def convolution():
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
    )


def test_a_class_without_images_is_refused_by_its_folder(tmp_path):
    image_folder(tmp_path, classes=("a", "b", "c"))
    for path in (tmp_path / "train" / "c").iterdir():
        path.unlink()
    with pytest.raises(DataError, match=r"cannot load images from .*train/c: it holds no image file"):
        load_data(f"imagefolder:{tmp_path}")


def images_of(count, labels=None, channels=1, image_channels=1):
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, channels, 4, 4), generator=generator, dtype=torch.uint8)
    split = MemorySplit(pixels, torch.arange(count) % 2 if labels is None else torch.tensor(labels))
    return ImageData(
        name="few",
        train=split,
        test=split,
        classes=("a", "b"),
        image_size=(image_channels, 4, 4),
        mean=(0.5,) * image_channels,
        std=(0.3,) * image_channels,
        augmentation=transprune.Augmentation(),
    )


def test_a_wrong_label_is_refused_by_its_place():
    with pytest.raises(DataError, match="the train split of 'few': image 2 has label 7; expected 0 to 1"):
        images_of(3, labels=[0, 1, 7])


def test_a_wrong_label_in_a_loader_is_refused_by_its_batch():
    data = batches_with(0.0, classes=5)
    with pytest.raises(
        DataError, match=r"batch of phase 'teacher', epoch 1, step 1: a label is out of range \(Target "
    ):
        transprune.train(small_network(), data, OPTIONS)


@pytest.mark.parametrize("channels", [2, 4])
def test_images_in_memory_with_other_channels_are_refused(channels):
    with pytest.raises(DataError, match=f"its images have {channels} channels; expected 3, or 1 or 3 where"):
        images_of(4, channels=channels, image_channels=3)


@pytest.mark.parametrize(("count", "batch_size"), [(3, 16), (17, 16), (33, 16), (2, 2)])
def test_fewer_images_than_a_batch_and_one_that_is_left_over_are_learned_from(count, batch_size):
    options = transprune.TrainingOptions(epochs=1, batch_size=batch_size, warm_up_epochs=0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    transprune.train(network, images_of(count), options)


def test_a_single_sample_for_a_batch_norm_is_refused_by_its_batch():
    data = batches_with(0.0)
    inputs, labels = data.train[3]
    data.train[3] = inputs[:1], labels[:1]
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    with pytest.raises(
        DataError, match=r"step 4: it has one sample, and batch norm cannot learn from one; leave incomp"
    ):
        transprune.train(network, data, OPTIONS)


class Samples(Dataset):
    """Samples of which one cannot be loaded, or ends its process."""

    def __init__(self, *, dies=False):
        self.dies = dies

    def __len__(self):
        return 12

    def __getitem__(self, place):
        if place == 7:
            if self.dies:
                os.kill(os.getpid(), signal.SIGKILL)
            raise OSError("the disk is gone")
        return torch.zeros(1, 4, 4), place % 2


def loaded(loader):
    test = [(torch.zeros(1, 1, 4, 4), torch.zeros(1).long())]
    return LoaderData(train=loader, test=test, example=torch.zeros(1, 1, 4, 4))


def test_a_data_set_that_fails_is_reported_with_the_batch():
    data = loaded(DataLoader(Samples(), batch_size=4))
    with pytest.raises(DataError, match="cannot load batch 2 of the train loader: OSError: the disk is gone; look at"):
        transprune.train(small_network(), data, OPTIONS)


def test_what_a_data_set_raises_in_a_process_is_no_death_of_it():
    data = loaded(DataLoader(Samples(), batch_size=4, num_workers=1))
    with pytest.raises(DataError, match=r"of the train loader: OSError: the disk is gone; look at"):
        transprune.train(small_network(), data, OPTIONS)


def test_a_process_that_dies_while_loading_is_reported_and_not_waited_for():
    data = loaded(DataLoader(Samples(dies=True), batch_size=4, num_workers=1))
    with pytest.raises(ResourceError, match=r"cannot load batch [12] of the train loader: a process that loads data d"):
        transprune.train(small_network(), data, OPTIONS)


@pytest.mark.parametrize("error", [ConnectionResetError(104, "Connection reset by peer"), EOFError()])
def test_a_process_that_dies_while_it_hands_a_batch_over_is_reported(error, monkeypatch):
    def fails(_):
        raise error

    monkeypatch.setattr(_MultiProcessingDataLoaderIter, "_next_data", fails)
    data = loaded(DataLoader(Samples(), batch_size=4, num_workers=1))
    with pytest.raises(ResourceError, match=rf"a process that loads data died \(.*{type(error).__name__}\)"):
        transprune.train(small_network(), data, OPTIONS)


class EndsItsLoaders(nn.Module):
    """Ends the processes that load its data in the middle of a step, one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(16, 2)

    def forward(self, images):
        for process in multiprocessing.active_children()[-1:] if self.training else ():
            os.kill(process.pid, signal.SIGKILL)
            time.sleep(1)
        return self.last(images.flatten(1))


def test_a_process_that_dies_in_a_step_is_reported_and_nothing_else_is(monkeypatch):
    ignored = []
    monkeypatch.setattr(sys, "unraisablehook", ignored.append)
    loader = DataLoader(TensorDataset(torch.zeros(64, 1, 4, 4), torch.zeros(64).long()), batch_size=2, num_workers=2)
    with pytest.raises(ResourceError, match="a process that loads data died"):
        transprune.train(EndsItsLoaders(), loaded(loader), OPTIONS)
    gc.collect()
    assert ignored == []


class NotHandedOver(Dataset):
    """Its samples, or what it does about them, cannot leave the process that loads them."""

    def __init__(self, how):
        self.how = how

    def __len__(self):
        return 8

    def __getitem__(self, place):
        if self.how == "waits":
            time.sleep(1000)
        if self.how == "full":
            return Full()
        if self.how == "full while collated":
            raise RuntimeError("unable to allocate shared memory(shm) for file </torch_7_1>: No space left (28)")
        return torch.zeros(1, 4, 4), threading.Lock()


class Full:
    """What torch raises where shared memory is full."""

    def __reduce__(self):
        raise RuntimeError("unable to write to file </torch_7_1>: No space left on device (28)")


@pytest.mark.parametrize(
    ("how", "settings", "message"),
    [
        ("full", {}, r"No space left on device.*--shm-size=2g\), or take fewer processes \(num_workers\)"),
        ("full", {"persistent_workers": True}, "--shm-size"),
        ("full while collated", {}, r"over \(RuntimeError: unable to allocate.*--shm-size"),
        (
            "a lock",
            {},
            r"could not hand a batch over \(TypeError: cannot pickle '_thread.lock' object\); expected t",
        ),
    ],
)
def test_what_a_process_cannot_hand_over_ends_the_run_with_the_way_out(how, settings, message):
    loader = DataLoader(NotHandedOver(how), batch_size=4, collate_fn=list, num_workers=1, **settings)
    with pytest.raises(DataError, match=message):
        transprune.train(small_network(), loaded(loader), OPTIONS)
    assert (loader.worker_init_fn, loader.timeout) == (None, 0), "the loader is as it was"


def test_a_process_that_gives_nothing_is_not_waited_for_without_end(monkeypatch):
    monkeypatch.setattr(interruption, "PATIENCE", 1)
    loader = DataLoader(NotHandedOver("waits"), batch_size=4, num_workers=1)
    with pytest.raises(DataError, match=r"timed out after 1 seconds.*num_workers=0 shows where it stands"):
        transprune.train(small_network(), loaded(loader), OPTIONS)


def test_no_more_processes_load_images_than_shared_memory_has_room_for(tmp_path, monkeypatch, capsys):
    free = SimpleNamespace(free=64 * 2**20)
    monkeypatch.setattr(image_batches.shutil, "disk_usage", lambda _: free)
    large, small = 256 * 3 * 224 * 224, 32 * 3 * 64 * 64
    assert (workers_that_fit(large, 16), workers_that_fit(small, 16)) == (0, 16)
    data = load_data(f"imagefolder:{image_folder(tmp_path, size=(80, 90), per_class=4)}")
    free.free = 2**20
    loader = make_loader(data.train, data, batch_size=4, train=True, seed=0, device="cpu", workers=2)
    assert len([images for images, _ in loader]) == len(loader)
    assert "0 of 2 processes load data: shared memory (/dev/shm)" in capsys.readouterr().err


class BlockedSignals(Dataset):
    """Tells whether the process that loads a sample hears Ctrl-C."""

    def __len__(self):
        return 4

    def __getitem__(self, place):
        is_deaf = signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, [])
        return torch.full((1,), float(is_deaf)), place


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_processes_that_load_data_never_hear_ctrl_c_and_this_one_does(context):
    loader = DataLoader(BlockedSignals(), batch_size=2, num_workers=2, multiprocessing_context=context)
    data = LoaderData(train=loader, test=loader, example=torch.zeros(1, 1))
    for batch in feed(data, "train", classification(), batch_size=0, seed=0, device=torch.device("cpu")):
        assert batch.inputs[0].tolist() == [[1.0], [1.0]]
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="has no groups of processes")
@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_signal_while_processes_load_data_ends_all_of_them_with_a_checkpoint(tmp_path, name, code):
    """Ctrl-C goes to all processes, as a terminal sends it; SIGTERM to the first alone."""
    image_folder(tmp_path / "images", size=(80, 90), per_class=60)
    (tmp_path / "net.py").write_text(
        "from torch import nn\n\n\ndef build(classes, image_channels):\n"
        "    convolution = nn.Conv2d(image_channels, 4, 3, stride=8)\n"
        "    return nn.Sequential(convolution, nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), "
        "nn.Linear(4, classes))\n"
    )
    arguments = (
        "run net.py:build --data imagefolder:images --image-size 3 70 70 --budget macs=0.6 --preset quick --device cpu "
        "--out run --teacher.batch-size 4 --teacher.epochs 1000"
    )
    process = torture.start_copy(run_in_a_group, arguments.split(), tmp_path / "output.txt")
    journal, deadline = tmp_path / "run" / "journal.jsonl", time.monotonic() + 400
    while not (journal.exists() and '"epoch"' in journal.read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)
    if name == "SIGINT":
        os.killpg(process.pid, signal.SIGINT)
    else:
        os.kill(process.pid, signal.SIGTERM)
    assert process.wait(300) == code
    text = (tmp_path / "output.txt").read_text()
    assert f"stopped in phase 'teacher' ({name})" in text
    assert "Traceback" not in text
    assert (tmp_path / "run" / "checkpoint.safetensors").exists()
    deadline = time.monotonic() + 100  # of its own: on a busy machine all before it takes long
    while (is_left := group_is_alive(process.pid)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not is_left, "a process that loads data"


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="has no terminals")
def test_a_terminal_that_is_closed_leaves_a_checkpoint(tmp_path):
    """What is written to a terminal that is gone fails; nothing of that may end the run before its step has."""
    import pty

    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = "run resnet20 --data digits --budget macs=0.6 --preset quick --device cpu --teacher.epochs 1000 --out run"
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(tmp_path)
        os.execve(sys.executable, [sys.executable, "-m", "transprune", *command.split()], environment)
    journal, deadline = tmp_path / "run" / "journal.jsonl", time.monotonic() + 300
    while not (journal.exists() and '"epoch"' in journal.read_text()) and time.monotonic() < deadline:
        if select.select([terminal], [], [], 0.2)[0]:
            os.read(terminal, 4096)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 129
    assert '"reason": "SIGHUP"' in journal.read_text().splitlines()[-1]
    assert (tmp_path / "run" / "checkpoint.safetensors").exists()


def run_in_a_group(arguments, output):
    """A command in a group of processes of its own."""
    os.setsid()
    torture.write_to(output)
    os.chdir(output.parent)
    cli.main(arguments)


def read_or_nothing(path):
    """The text of a file; empty where it is gone."""
    try:
        return path.read_text()
    except OSError:
        return ""


def group_is_alive(number):
    """Whether a process of a group runs; one that has ended, of which nobody has asked how, does not."""
    try:
        os.killpg(number, 0)
    except ProcessLookupError:
        return False
    states = [stat.rpartition(")")[2].split()[:3] for stat in map(read_or_nothing, Path("/proc").glob("[0-9]*/stat"))]
    in_group = [state for state, _, group in filter(None, states) if int(group) == number]
    return not in_group or any(state != "Z" for state in in_group)


# --- memory -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError(), None])
def test_memory_that_runs_out_is_reported_with_phase_batch_and_what_to_lower(error):
    class Greedy(nn.Sequential):
        def forward(self, images):
            if self.training and len(images) > 2:
                if error is not None:
                    raise error
                torch.empty(2**60)
            return super().forward(images)

    message = (
        r"^cannot go on with phase 'distill', epoch 1, step 1: memory ran out for a batch of "
        r"\[16, 1, 4, 4\] on cpu; lower the batch size \(--distill\.batch-size, or that of your own loader\)"
    )
    options = transprune.DistillationOptions(**SHORT)
    with pytest.raises(ResourceError, match=message):
        transprune.distill(Greedy(*small_network()), small_network(), two_colours(), options)


# --- weights ----------------------------------------------------------------------------------------------------


class Bomb:
    def __init__(self, place):
        self.place = place

    def __reduce__(self):
        return open, (str(self.place), "w")


@pytest.mark.parametrize("writer", ["pickle", "torch", "torch state dict", "renamed"])
def test_a_pickle_bomb_among_weights_is_refused_and_nothing_is_run(tmp_path, writer):
    ran, network = tmp_path / "ran", small_network()
    path = tmp_path / ("w.safetensors" if writer == "renamed" else "w.pth")
    if writer in ("pickle", "renamed"):
        path.write_bytes(pickle.dumps(Bomb(ran)))
    else:
        torch.save({**network.state_dict(), "0.bias": Bomb(ran)} if "dict" in writer else Bomb(ran), path)
    with pytest.raises(ModelError, match=r"cannot load weights from .*; expected tensors only"):
        load_weights(path, network)
    assert not ran.exists()


def test_the_command_line_refuses_a_pickle_bomb(tmp_path, capsys):
    from transprune.cli import main

    (tmp_path / "w.pth").write_bytes(pickle.dumps(Bomb(tmp_path / "ran")))
    command = ["run", "resnet20", "--data", "digits", "--budget", "macs=0.5", "--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit) as stopped:
        main([*command, "--weights", str(tmp_path / "w.pth")])
    assert stopped.value.code == 2
    assert "expected tensors only" in capsys.readouterr().err
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "out").exists()


def test_a_compressed_archive_of_weights_is_refused(tmp_path):
    torch.save(small_network().state_dict(), tmp_path / "plain.pth")
    with zipfile.ZipFile(tmp_path / "plain.pth") as plain, zipfile.ZipFile(tmp_path / "w.pth", "w") as packed:
        for part in plain.infolist():
            packed.writestr(part.filename, plain.read(part), zipfile.ZIP_DEFLATED)
    with pytest.raises(ModelError, match="it is a compressed archive"):
        load_weights(tmp_path / "w.pth", small_network())


def test_weights_of_another_type_are_refused_and_of_another_precision_taken(tmp_path):
    network = small_network()
    weights = {
        name: value.half() if value.is_floating_point() else value for name, value in network.state_dict().items()
    }
    torch.save(weights, tmp_path / "w.pth")
    assert load_weights(tmp_path / "w.pth", network).is_whole
    torch.save({**weights, "0.bias": torch.zeros(4, dtype=torch.int8)}, tmp_path / "w.pth")
    with pytest.raises(ModelError, match=r"0\.bias has type torch\.int8, expected torch\.float32"):
        load_weights(tmp_path / "w.pth", network)
