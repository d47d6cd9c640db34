"""Work for one process or several: each function is called by all processes of a job, and says what came out.

Run by `together`, or by `torchrun` itself.
"""

from __future__ import annotations

import dataclasses
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import multiprocessing, nn
from torch.utils.data import DataLoader, TensorDataset, default_collate

import transprune
from test_resume import StopsAfter
from test_searching import OPTIONS as SEARCH
from test_searching import Residual, bilevel
from test_training import SHORT, small_network, two_colours
from transprune.data import LoaderData
from transprune.errors import ResourceError, StoppedError
from transprune.options import CheckpointOptions
from transprune.runtime import Checkpoints, processes, random_states, set_random_states
from transprune.searching import search
from transprune.training.batches import Batch, Feed, feed
from transprune.training.loop import Setup
from transprune.training.tasks import classification
from transprune.training.train import Fit

CPU = torch.device("cpu")


Work = tuple[str, Callable[[], Any]]
"""The backend of a job, and a function of this module."""


def together(*works: Work, count: int = 2) -> tuple[list[list[Any]], Exception | None]:
    """What each work gives in each process of a job of its own, and the error that ended the last of them.

    The jobs follow each other in the same processes, since to start these takes longer than most of the work.
    """
    with tempfile.TemporaryDirectory() as folder:
        ended = None
        try:
            multiprocessing.spawn(_work, (works, count, folder), nprocs=count)
        except Exception as error:
            ended = error
        done = [[Path(folder) / f"{number}-{rank}" for rank in range(count)] for number in range(len(works))]
        whole = [files for files in done if all(file.exists() for file in files)]
        if ended is not None and len(whole) < len(works) - 1:
            raise ended
        return [[torch.load(file, weights_only=False) for file in files] for files in whole], ended


def _work(rank: int, works: Sequence[Work], count: int, folder: str) -> None:
    torch.set_num_threads(1)
    for number, (backend, work) in enumerate(works):
        meeting = f"file://{folder}/meet{number}"
        torch.distributed.init_process_group(backend, init_method=meeting, rank=rank, world_size=count)
        torch.save(work(), Path(folder) / f"{number}-{rank}")
        torch.distributed.destroy_process_group()
        end = time.monotonic() + 10
        while _gloo_threads():  # one that has just ended may be there for a moment
            assert time.monotonic() < end, "threads that outlive the job may abort the interpreter when it ends"
            time.sleep(0.01)


def _gloo_threads() -> list[str]:
    """The names of those that exchange numbers for this process; none where the system does not tell."""
    names = []
    for path in Path("/proc/self/task").glob("*/comm"):
        with suppress(OSError):  # one that ended meanwhile
            names.append(path.read_text())
    return [name for name in names if "gloo" in name]


def everything() -> dict[str, Any]:
    """All of the work below but the last."""
    works = (
        exchanges,
        step_of_fit,
        steps_of_search,
        trained,
        searched,
        resumed,
        moved,
        drawn_by_newcomers,
        loaded,
        taken_up,
        measured,
    )
    return {work.__name__: work() for work in works}


def exchanges() -> dict[str, Any]:
    """What every function of `processes` gives."""
    rank = processes.rank()
    added = [torch.full((2,), rank + 1.0), torch.tensor(10 * rank), torch.eye(2, dtype=torch.float64)]
    processes.add_up(added)
    aligned = [torch.full((3,), float(rank))]
    processes.align(aligned)
    point = torch.tensor(rank + 1.0, requires_grad=True)
    ((rank + 1) * processes.summed(point)).backward()

    def fail() -> None:
        raise ValueError("no such luck")

    try:
        processes.from_first(fail)
    except Exception as error:
        failed = f"{type(error).__name__}: {error}"
    with processes.alone():
        alone = processes.count(), processes.rank(), processes.is_first(), processes.gathered(rank)
    return {
        "added": added,
        "aligned": aligned,
        "gradient": point.grad,
        "failed": failed,
        "alone": alone,
        "total": processes.total(rank + 5),
        "any": processes.any_of(rank == 1, False, True),
        "gathered": processes.gathered({"rank": rank}),
        "first": processes.from_first(lambda: f"made by {rank}"),
    }


def normless() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))


def step_of_fit() -> dict[str, Any]:
    """Gradients and statistics of one step on the same joint batch of 15 images, without and with norms."""
    found = {}
    for name, network, options in (
        ("plain", normless(), {}),
        ("normed", small_network(), {"sync_norms": True}),
        ("parts", normless(), {"accumulate": 3}),
    ):
        training = transprune.TrainingOptions(**SHORT | {"batch_size": 15}, **options)
        fit = Fit(
            network,
            None,
            two_colours(),
            training,
            classification(),
            setup=Setup(phase="teacher"),
        )
        fit.step(next(iter(fit._batches)))
        found[name] = {
            "gradients": [parameter.grad for parameter in fit.network.parameters()],
            "state": fit.network.state_dict(),
            "loss": fit.meter.evaluation().loss,
        }
    return found


def _double(batch: Batch) -> Batch:
    return batch._replace(inputs=tuple(each.double() for each in batch.inputs))


def steps_of_search() -> dict[str, Any]:
    """Gradients of both halves of a step."""
    torch.manual_seed(0)
    searching = bilevel(Residual(), transprune.SearchOptions(epochs=3, batch_size=11, sync_norms=True))
    searching.supernet.double()
    searching.parameters.double()  # in float32 the rounding of the norms hides the small gradients
    searching.step_weights(_double(next(iter(searching.weight_batches))), temperature=5.0)
    weights = [weight.grad for weight in searching.weights]
    searching.step_architecture(_double(next(searching.architecture_batches)), temperature=5.0)
    return {
        "weights": weights,
        "architecture": [parameter.grad for parameter in searching.parameters.parameters()],
        "loss": searching.meter.evaluation().loss,
    }


def trained() -> dict[str, Any]:
    """Figures and weights of a whole training."""
    history: list[Any] = []
    options = transprune.TrainingOptions(**SHORT, sync_norms=True)
    network = transprune.train(small_network(), two_colours(68), options, setup=Setup(on_epoch=history.append))
    return {"history": history, "state": network.state_dict()}


def searched() -> dict[str, Any]:
    """What a whole search finds."""
    torch.manual_seed(0)
    with mock.patch.object(search, "derive_with_proof", wraps=search.derive_with_proof) as derive:
        found = transprune.search(Residual(), two_colours(), "macs=0.5", SEARCH)
    return {
        "architecture": found.architecture,
        "widths": found.probabilities.widths,
        "history": found.history,
        "derivations": derive.call_count,
    }


def resumed() -> dict[str, Any]:
    """Weights of a training that stopped in the middle and went on, and of one that did not; with dropout."""
    network = nn.Sequential(nn.Flatten(), nn.Dropout(), nn.Linear(16, 2))
    options = transprune.TrainingOptions(**SHORT)
    whole = transprune.train(network, two_colours(), options)
    kept = Checkpoints(processes.from_first(tempfile.mkdtemp), CheckpointOptions(checkpoint_steps=1))
    steps = [0]

    def stop(figures: Any) -> None:
        steps[0] += 1
        if steps[0] == 2 and processes.rank() == processes.count() - 1:  # only the last one is asked to
            kept._request.reason = "SIGTERM"

    try:
        transprune.train(network, two_colours(), options, setup=Setup(checkpoints=kept, on_epoch=stop))
    except StoppedError as error:
        reason = error.reason
    return {
        "whole": whole.state_dict(),
        "resumed": transprune.train(network, two_colours(), options, setup=Setup(checkpoints=kept)).state_dict(),
        "reason": reason,
    }


def moved() -> dict[str, Any]:
    """What each phase gives that one process began, all processes went on with, and one ended; in its first process."""
    works: dict[str, Callable[..., Any]] = {
        "train": lambda **more: transprune.train(
            small_network(), two_colours(68), transprune.TrainingOptions(**SHORT, sync_norms=True), **more
        ).state_dict(),
        "search": lambda **more: (
            transprune.search(
                Residual(),
                two_colours(),
                "macs=0.5",
                dataclasses.replace(SEARCH, batch_size=8, sync_norms=True),
                **more,
            ).weights
        ),
        "distill": lambda **more: transprune.distill(
            normless(), small_network(), two_colours(), transprune.DistillationOptions(**SHORT), **more
        ).state_dict(),
    }
    found = {}
    for name, work in works.items():
        folder = processes.from_first(tempfile.mkdtemp)
        torch.manual_seed(0)  # a new network is built from it
        if processes.is_first():
            with processes.alone():
                found[name] = {"stopped": [_stopped(work, folder, 7)]}
        stopped = _stopped(work, folder, 2)
        if processes.is_first():
            with processes.alone():
                torch.manual_seed(0)
                found[name] |= {
                    "stopped": [*found[name]["stopped"], stopped],
                    "moved": work(setup=Setup(checkpoints=Checkpoints(folder))),
                    "whole": work(),
                }
    return found


def _stopped(work: Callable[..., Any], folder: str, steps: int) -> tuple[int, int]:
    """Processes and steps in the checkpoint of a phase that is stopped."""
    torch.manual_seed(0)
    with suppress(StoppedError):
        work(setup=Setup(checkpoints=StopsAfter(folder, steps)))
    states = (Checkpoints(folder).find(phase) for phase in ("teacher", "search", "distill"))
    state = next(state for state in states if state is not None)
    return len(state["processes"]), state["steps"]


def drawn_by_newcomers() -> list[float]:
    """What each process draws after it took up the state of one process."""
    options = transprune.TrainingOptions(**SHORT)
    setup = Setup(phase="teacher")
    with processes.alone():
        one = Fit(normless(), None, two_colours(), options, classification(), setup=setup)
        state = one.state_dict()
    fit = Fit(normless(), None, two_colours(), options, classification(), setup=setup)
    torch.manual_seed(processes.rank())  # as `run` does
    fit.load_state_dict(state)
    return processes.gathered(torch.rand(1).item())


def loaded() -> dict[str, Any]:
    """Which samples of loaders of one's own each process sees."""
    samples = TensorDataset(torch.arange(22.0)[:, None], torch.arange(22) % 2)
    loader = DataLoader(samples, batch_size=6, shuffle=True)
    data = LoaderData(train=loader, test=DataLoader(samples, batch_size=7), example=torch.zeros(1, 1))
    seen = {}
    for part in ("train", "test"):
        batches = feed(data, part, classification(), batch_size=0, seed=0, device=CPU)
        seen[part] = [batch.inputs[0].flatten().tolist() for batch in batches]
    return seen


def taken_up() -> dict[str, Any]:
    """What a loader with a generator and noise of its own gives in its second epoch, and one that takes it up there."""

    def batches() -> Feed:
        samples = TensorDataset(torch.arange(24.0)[:, None], torch.arange(24) % 2)
        generator = torch.Generator().manual_seed(7)
        loader = DataLoader(samples, 6, True, generator=generator, collate_fn=_with_noise, num_workers=1)
        return Feed(loader, classification(), CPU, "train")

    torch.manual_seed(processes.rank())
    whole = batches()
    list(whole)
    epoch = iter(whole)
    given = [next(epoch).inputs[0].flatten().tolist() for _ in range(2)]
    state, random = whole.state_dict(), random_states()
    rest = [batch.inputs[0].flatten().tolist() for batch in epoch]
    resumed = batches()
    resumed.load_state_dict(state)
    set_random_states(random)
    return {"given": given, "rest": rest, "resumed": [batch.inputs[0].flatten().tolist() for batch in resumed]}


def _with_noise(samples: Any) -> Any:
    inputs, labels = default_collate(samples)
    return inputs + 0.1 * torch.rand(1), labels


def measured() -> dict[str, float]:
    """Figures on test data that cannot be shared equally."""
    return dict(transprune.evaluate(small_network().eval(), two_colours(33), batch_size=16).to_json())


def dies() -> str:
    """What the first process says when the second has gone."""
    if processes.rank() == 1:
        os._exit(1)
    try:
        processes.total(1)
        processes.total(1)
    except ResourceError as error:
        return str(error)
    return "nothing"
