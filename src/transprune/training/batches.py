"""Batches for the loops: split into inputs and targets by the task and moved to the device, from any kind of data."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset

from transprune.data import (
    ImageData,
    Loader,
    LoaderData,
    SearchLoaders,
    Split,
    divide_loader,
    length_of,
    like,
    make_loader,
    no_batches,
    split_halves,
)
from transprune.errors import DataError, TranspruneError
from transprune.reading.trace import axes_along
from transprune.runtime import processes, random_states, seeded, set_random_states
from transprune.runtime.interruption import start_loading
from transprune.runtime.seeds import generator_of
from transprune.runtime.structures import (
    SampleAxes,
    as_inputs,
    form_of,
    has_samples,
    joined,
    on_device,
    outline,
    samples_in,
    sliced,
    tensors_in,
)
from transprune.training.faults import worker_died
from transprune.training.tasks import Task

log = logging.getLogger("transprune.run")

Data = ImageData | LoaderData
"""What a network is trained on."""


AnyData = Data | DataLoader[Any] | Mapping[str, Any] | tuple[Any, Any] | Any
"""What is taken for data: `Data`; a `DataLoader`; an indexed data set, such as one of Hugging Face's `datasets`; two of
these, to learn from and to measure on, as a pair or by the names `train` and `test` (or `validation`)."""


class Batch(NamedTuple):
    """One batch, split into inputs and targets."""

    inputs: Any
    """Inputs of the network: a tuple of positional arguments, a mapping of named ones, or `Inputs`."""
    targets: Any
    """What the loss compares the outputs with."""
    axis: int = 0
    """The axis of targets that counts samples."""
    axes: SampleAxes | None = None
    """Those of the inputs, where they are known to be others."""

    @property
    def samples(self) -> int:
        """The number of samples."""
        return samples_in(self.inputs, self.targets, self._axes)

    def part(self, places: slice) -> Batch:
        """Some of the samples."""
        samples = self.samples
        inputs = sliced(self.inputs, places, samples, self._axes)
        return self._replace(inputs=inputs, targets=sliced(self.targets, places, samples, self.axis))

    @property
    def _axes(self) -> SampleAxes:
        return self.axis if self.axes is None else self.axes


def first_samples(
    network: nn.Module, batches: Iterable[Any], count: int, axis: int, *, while_alike: bool = False
) -> tuple[Any, SampleAxes]:
    """The first samples of several batches as one batch of inputs, and the axes along which they lie.

    Where no axis of the inputs counts samples, as in a graph, the first batch is taken whole.

    Args:
        network: What takes the inputs; untouched.
        batches: Batches of inputs.
        count: How many samples are wanted; there may be fewer.
        axis: The axis that counts samples, where the network does not keep others apart.
        while_alike: End before the first batch with samples of other shapes.

    Raises:
        DataError: There is no batch, it holds no tensors with such an axis, or the batches cannot be put together.
    """
    held: list[Any] = []
    axes: SampleAxes = axis
    found = 0
    for batch in batches:
        if not any(tensor.dim() > axis for tensor in tensors_in(batch)):
            raise DataError(
                f"cannot take samples from {outline(batch)}; expected tensors [samples, ...], nested as the network's "
                "forward takes them"
            )
        axes = axes if held else axes_along(network, batch, axis)
        if while_alike and held and _of_one(batch, axes) != _of_one(held[0], axes):
            break
        held.append(batch)
        found += samples_in(batch, axis=axes)
        if found >= count or not has_samples(axes):
            break
    if not held:
        raise DataError("cannot take samples: there is no batch of them; expected at least one")
    try:
        return sliced(joined(held, axes), slice(0, count), found, axes), axes
    except (RuntimeError, ValueError) as error:
        other = next((each for each in held if outline(each) != outline(held[0])), held[-1])
        raise DataError(
            f"cannot put the batches {outline(held[0])} and {outline(other)} together: {error}; expected batches that "
            "differ in the number of their samples alone (pad longer and shorter ones; the inputs of a network that "
            "takes several are one batch, [(first, second)])"
        ) from error


def _of_one(inputs: Any, axes: SampleAxes) -> Any:
    """Structure and shapes of one sample of inputs."""
    one = sliced(inputs, slice(0, 1), samples_in(inputs, axis=axes), axes)
    return form_of(one), [tensor.shape for tensor in tensors_in(one)]


class Feed:
    """The batches of a loader, each split by a task and moved to a device.

    Each `iter` begins the next epoch, or finishes the interrupted one after `load_state_dict`. Positions are counted in
    batches of the whole data set, so that a run can resume with another number of processes.

    Args:
        loader: Yields the batches of an epoch for each `iter`.
        task: Splits batches into inputs and targets.
        device: Where to move them.
        part: The name of the loader in messages, such as `train`.
    """

    def __init__(self, loader: Iterable[Any], task: Task, device: torch.device, part: str) -> None:
        self._loader, self._task, self._device, self.part = shared(loader, part), task, device, part
        self._generators = generators_of(loader)
        self._epoch = 0
        self._given = 0
        self._start: Mapping[str, Any] | None = None

    def __len__(self) -> int:
        """The number of batches in an epoch; a loader without a length is read once to count them.

        Raises:
            DataError: There are none, or the loader fails.
        """
        length = length_of(self._loader)
        if length is None:
            with self._loading():
                length = sum(1 for _ in self._loader)
        if not length:
            raise no_batches(self.part)
        return length

    def __iter__(self) -> Iterator[Batch]:
        try:
            for batch in self._rest():
                self._given += 1
                yield on_device(self._apart(batch), self._device)
            if not self._given:
                raise no_batches(self.part)
        finally:
            self._epoch, self._given, self._start = self._epoch + 1, 0, None

    def state_dict(self) -> dict[str, Any]:
        """The position of the next batch, and the random states from which the epoch began."""
        own = [generator.get_state() for generator in self._generators]
        return {"epoch": self._epoch, "given": self._given, "starts": processes.gathered(self._start), "own": own}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Makes the next `iter` continue from where `state_dict` was called."""
        self._epoch, self._given, starts = state["epoch"], state["given"], state["starts"]
        self._start = starts[processes.rank() if processes.rank() < len(starts) else 0]
        self._set_own_states(state["own"])

    def _rest(self) -> Iterator[Any]:
        """The rest of the current epoch."""
        with self._loading():
            batches = self._opened()
        while True:
            with self._loading():
                try:
                    batch = next(batches)
                except StopIteration:
                    return
            yield batch

    @contextmanager
    def _loading(self) -> Iterator[None]:
        """Turns errors of the loader into ours, which name the batch.

        Raises:
            DataError: The loader fails.
            ResourceError: A worker process died.
        """
        try:
            yield
        except TranspruneError:
            raise
        except Exception as error:  # a user's loader may raise anything
            raise _not_loaded(f"batch {self._given + 1} of the {self.part} loader", error) from error

    def _opened(self) -> Iterator[Any]:
        if isinstance(self._loader, Loader):
            return self._loader.batches(self._epoch, first=self._given)
        _set_epoch(self._loader, self._epoch)
        if self._start is None:
            self._start = self._states()
            return start_loading(self._loader)
        # A user's loader cannot seek: restart its epoch from the same random states and skip the batches already seen.
        now = self._states()
        self._set_states(self._start)
        batches = start_loading(self._loader)
        next(islice(batches, self._given, self._given), None)  # may end early if the number of processes changed
        self._set_states(now)
        return batches

    def _states(self) -> dict[str, Any]:
        """The random states that a user's loader may draw from: the global ones and those of its own generators."""
        return {**random_states(), "own": [generator.get_state() for generator in self._generators]}

    def _set_states(self, states: Mapping[str, Any]) -> None:
        set_random_states(states)
        self._set_own_states(states["own"])

    def _set_own_states(self, states: Sequence[Tensor]) -> None:
        for generator, state in zip(self._generators, states, strict=True):
            generator.set_state(state)

    def _apart(self, batch: Any) -> Batch:
        try:
            inputs, targets = self._task.split(batch)
        except Exception as error:  # a user's split may raise anything
            raise DataError(
                f"cannot take apart a batch of the {self.part} loader, {outline(batch)}: "
                f"{error if isinstance(error, DataError) else repr(error)}"
            ) from error
        return Batch(as_inputs(inputs), targets, self._task.sample_axis)


def own_share() -> tuple[int, int]:
    """The rank of this process, and the number of processes."""
    return processes.rank(), processes.count()


def shared(loader: Iterable[Any], part: str) -> Iterable[Any]:
    """A loader that gives each process its share of every batch, if it is a plain `DataLoader` over indexed samples.

    Other loaders are returned as they are and must divide the samples themselves, as a `DistributedSampler` and loaders
    prepared by accelerate or Fabric do; if they do not, all processes learn from the same samples.
    """
    if processes.count() == 1 or not isinstance(loader, DataLoader) or type(loader) is not DataLoader:
        return loader
    divides_itself = isinstance(loader.dataset, IterableDataset) or isinstance(loader.sampler, DistributedSampler)
    if loader.batch_sampler is None or divides_itself:
        return loader
    return like(loader, loader.dataset, batch_sampler=_Shares(loader.batch_sampler, part))


class _Shares:
    """This process's share of the batches that the first process draws."""

    def __init__(self, batches: Iterable[Sequence[int]], part: str) -> None:
        self._batches, self._is_measuring = batches, part in ("test", "validation")

    def __iter__(self) -> Iterator[Sequence[int]]:
        index, count = own_share()
        for batch in processes.from_first(lambda: [list(places) for places in self._batches]):
            own = batch[processes.share_of(len(batch), index, count)]
            if len(batch) < count and not self._is_measuring:
                raise DataError(
                    f"cannot share a batch of {len(batch)} samples among {count} processes: expected one for each; "
                    "leave incomplete batches out (drop_last=True), or choose another batch size"
                )
            if own:
                yield own

    def __len__(self) -> int:
        return len(self._batches)  # type: ignore[arg-type]


def _not_loaded(what: str, error: Exception) -> TranspruneError:
    last = (str(error).strip() or "without a word").splitlines()[-1]  # of a whole traceback, if a process raised it
    text = last if last.startswith(type(error).__name__) else f"{type(error).__name__}: {last}"
    return worker_died(what, error) or DataError(f"cannot load {what}: {text}; look at the data set and its transforms")


def generators_of(loader: Iterable[Any]) -> list[torch.Generator]:
    """The generators of a `DataLoader` and its sampler, if they have their own."""
    found = [getattr(owner, "generator", None) for owner in (loader, getattr(loader, "sampler", None))]
    return [generator for generator in found if isinstance(generator, torch.Generator)]


def _set_epoch(loader: Iterable[Any], epoch: int) -> None:
    """Calls `set_epoch` on a loader and its samplers where they have it.

    Without it, a `DistributedSampler` draws the same order in every epoch.
    """
    batches = getattr(loader, "batch_sampler", None)
    for owner in (loader, batches, getattr(loader, "sampler", None), getattr(batches, "sampler", None)):
        tell = getattr(owner, "set_epoch", None)
        if callable(tell):
            tell(epoch)


class SearchFeeds(NamedTuple):
    """The training data of a search."""

    weights: Feed
    """Batches that the weights learn on."""
    architecture: Feed
    """Batches that the architecture learns on."""
    validation: Feed
    """The same samples as `architecture`, to measure on; images of `ImageData` are not augmented here."""


def feed(
    data: Data, part: Literal["train", "test"], task: Task, *, batch_size: int, seed: int, device: torch.device
) -> Feed:
    """The batches of one part of a data set.

    Args:
        data: The data set.
        part: Which part of it.
        task: Splits batches into inputs and targets.
        batch_size: Samples per batch, for `ImageData`; loaders of your own have their own batch size.
        seed: Decides order and augmentation, for `ImageData`.
        device: Where to move the batches.

    Raises:
        DataError: The data is of an unknown kind.
    """
    loader: Iterable[Any]
    if isinstance(data, LoaderData):
        loader = data.train if part == "train" else data.test
    else:
        images, is_train = _images(data), part == "train"
        images.require_labels("train" if is_train else "measure a network")
        split = images.train if is_train else images.test
        loader = make_loader(
            split, images, batch_size=batch_size, train=is_train, seed=seed, device=device, share=own_share()
        )
    return Feed(loader, task, device, part)


def search_feeds(
    data: Data, task: Task, *, batch_size: int, weights_share: float, seed: int, device: torch.device
) -> SearchFeeds:
    """The training data of a search in two parts.

    Args:
        data: The data set.
        task: As in `feed`.
        batch_size: As in `feed`.
        weights_share: The share of the samples for the weights, unless the data already comes in two parts.
        seed: Decides how samples are divided.
        device: As in `feed`.

    Raises:
        DataError: The data is of an unknown kind, or cannot be divided.
    """
    if isinstance(data, LoaderData):
        loaders = divide_loader(data, fraction=weights_share, seed=seed, processes=processes.count())
    else:
        images = _images(data)
        images.require_labels("search")
        loaders = _image_loaders(images, batch_size, weights_share, seed, device)
    return SearchFeeds(
        Feed(loaders.weights, task, device, "weights"),
        Feed(loaders.architecture, task, device, "architecture"),
        Feed(loaders.validation, task, device, "validation"),
    )


def as_data(data: AnyData, task: Task, *, batch_size: int = 64, is_tested: bool = True) -> Data:
    """Data as the loops take them.

    Args:
        data: What is taken for data; an example of the inputs is taken from the first sample.
        task: Splits batches into inputs and targets.
        batch_size: Samples per batch, for data sets that come without a loader.
        is_tested: Whether there is learning and measuring; it is said then where a single part serves for both.

    Raises:
        DataError: The data is of an unknown kind, or its first batch cannot be taken apart.
    """
    if isinstance(data, ImageData | LoaderData):
        return data
    if isinstance(data, Mapping) and "train" in data:
        train, test = data["train"], next((data[name] for name in ("test", "validation") if name in data), None)
    elif isinstance(data, tuple) and len(data) == 2:
        train, test = data
    elif isinstance(data, DataLoader) or _is_indexed(data):
        train, test = data, None
    else:
        raise DataError(
            f"cannot use data of the kind {type(data).__name__}: expected ImageData, LoaderData, a DataLoader, an "
            "indexed data set, or a pair of these, to learn from and to measure on"
        )
    loader = _loader_of(train, batch_size, is_training=True)
    if test is None and is_tested:
        log.warning("what is measured is measured on the training data: give a pair, (train, test), to have both")
    tested = _loader_of(train if test is None else test, batch_size, is_training=False)
    return LoaderData(train=loader, test=tested, example=_first_inputs(loader, task))


def is_pair(data: Any) -> bool:
    """Whether data are a part to learn from and one to measure on, rather than batches."""
    if isinstance(data, Mapping):
        return "train" in data
    is_of_two = isinstance(data, tuple) and len(data) == 2
    return is_of_two and all(isinstance(part, DataLoader) or _is_indexed(part) for part in data)


def _is_indexed(data: Any) -> bool:
    is_plain = isinstance(data, Mapping | Sequence | Tensor)
    return hasattr(data, "__getitem__") and hasattr(data, "__len__") and not is_plain


def _loader_of(data: Any, batch_size: int, *, is_training: bool) -> Iterable[Any]:
    if isinstance(data, DataLoader) or not _is_indexed(data):
        return data  # type: ignore[no-any-return]
    if hasattr(data, "with_format") and getattr(data, "format", {}).get("type") is None:  # of Hugging Face, in Python's
        data = data.with_format("torch")  # own types
    if not len(data):
        raise no_batches("training" if is_training else "test")
    has_rest = is_training and len(data) > batch_size
    return DataLoader(data, batch_size=batch_size, shuffle=is_training, drop_last=has_rest)


def _first_inputs(loader: Iterable[Any], task: Task) -> Any:
    """Inputs of a single sample."""
    feed = Feed(loader, task, torch.device("cpu"), "train")
    with seeded(0, "example"):
        batches = iter(feed)
        first = next(batches)
        batches.close()  # type: ignore[attr-defined]
    return first.part(slice(0, 1)).inputs


def example_of(data: Data) -> Any:
    """Inputs of the right shape for the network, on the CPU; their values have no meaning."""
    if isinstance(data, LoaderData):
        return on_device(as_inputs(data.example), "cpu")
    return (torch.zeros(1, *_images(data).image_size),)


def _image_loaders(
    images: ImageData, batch_size: int, weights_share: float, seed: int, device: torch.device
) -> SearchLoaders:
    def loader(split: Split, seed: int, *, train: bool) -> Loader:
        return make_loader(
            split, images, batch_size=batch_size, train=train, seed=seed, device=device, share=own_share(), least=2
        )

    weights, architecture = split_halves(images.train, fraction=weights_share, seed=seed)
    mixed = architecture.subset(torch.randperm(len(architecture), generator=generator_of(seed)))
    return SearchLoaders(
        loader(weights, seed, train=True),
        loader(architecture, seed + 1, train=True),
        loader(mixed, seed, train=False),
    )


def _images(data: Data) -> ImageData:
    if not isinstance(data, ImageData):
        raise DataError(f"cannot use data of the kind {type(data).__name__}: expected ImageData or LoaderData")
    return data
