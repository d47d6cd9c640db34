"""transprune makes trained PyTorch networks smaller.

A network, a data set and a budget go in; out comes a smaller network of the same kind, retrained. Its widths and
depths are learned by transformable architecture search (Dong & Yang, 2019, arXiv:1905.09717).

    space = transprune.inspect(model, example)            # what can be chosen, and what it costs
    found = transprune.search(model, data, "macs=0.5")    # the architecture, learned
    student = transprune.distill(found.student, model, data)    # trained with the unpruned network as its teacher

A trained network can do without the training: `transprune.compress(model, data, "macs=0.5").student`.
"""

from typing import TYPE_CHECKING

from transprune.on_demand import on_demand

__version__ = "0.2.0"

if TYPE_CHECKING:
    from transprune.architecture import Architecture as Architecture
    from transprune.budget import Budget as Budget
    from transprune.budget import Limit as Limit
    from transprune.costs import Cost as Cost
    from transprune.costs import FileSize as FileSize
    from transprune.data import Augmentation as Augmentation
    from transprune.data import ImageData as ImageData
    from transprune.data import LoaderData as LoaderData
    from transprune.data import MemorySplit as MemorySplit
    from transprune.data import load_data as load_data
    from transprune.data import make_loader as make_loader
    from transprune.data.scenes import load_scenes as load_scenes
    from transprune.data.texts import load_texts as load_texts
    from transprune.errors import TranspruneError as TranspruneError
    from transprune.exports.load import load as load
    from transprune.exports.runtimes import export as export
    from transprune.latency.latency_model import LatencyModel as LatencyModel
    from transprune.latency.measurement import LatencyMeasurement as LatencyMeasurement
    from transprune.latency.measurement import file_size as file_size
    from transprune.latency.measurement import measure_latency as measure_latency
    from transprune.latency.performance import Performance as Performance
    from transprune.latency.performance import Quantised as Quantised
    from transprune.latency.performance import measure as measure
    from transprune.latency.performance import quantise as quantise
    from transprune.latency.stopwatch import Latency as Latency
    from transprune.latency.stopwatch import measure_latencies as measure_latencies
    from transprune.models.configured import configured as configured
    from transprune.models.hugging_face import export_pretrained as export_pretrained
    from transprune.models.resnet import ResidualSum as ResidualSum
    from transprune.models.resnet import ResNet as ResNet
    from transprune.models.resnet import ResNetShape as ResNetShape
    from transprune.models.resnet import resnet as resnet
    from transprune.models.resnet import resnet_from_torchvision as resnet_from_torchvision
    from transprune.options import CheckpointOptions as CheckpointOptions
    from transprune.options import CompressOptions as CompressOptions
    from transprune.options import DistillationOptions as DistillationOptions
    from transprune.options import LatencyOptions as LatencyOptions
    from transprune.options import MeasureOptions as MeasureOptions
    from transprune.options import SearchOptions as SearchOptions
    from transprune.options import TrainingOptions as TrainingOptions
    from transprune.options import get_preset as get_preset
    from transprune.reading.coupling import Call as Call
    from transprune.reading.inspection import inspect as inspect
    from transprune.reading.macs import count_macs as count_macs
    from transprune.reading.reading import Reading as Reading
    from transprune.reading.reading import read as read
    from transprune.reading.rules import register_rule as register_rule
    from transprune.runs.steps import Finished as Finished
    from transprune.runs.steps import report as report
    from transprune.runs.steps import run as run
    from transprune.runs.steps import save as save
    from transprune.runtime import Checkpoints as Checkpoints
    from transprune.runtime import Inputs as Inputs
    from transprune.scores.compress import Smallest as Smallest
    from transprune.scores.compress import TriedBudget as TriedBudget
    from transprune.scores.compress import compress as compress
    from transprune.scores.compress import smallest as smallest
    from transprune.scores.refit import repair as repair
    from transprune.scores.rounds import Compression as Compression
    from transprune.scores.score import Scores as Scores
    from transprune.scores.score import ablation as ablation
    from transprune.scores.score import reconstruction as reconstruction
    from transprune.scores.score import score as score
    from transprune.scores.score import sort_by_scores as sort_by_scores
    from transprune.scores.score import taylor as taylor
    from transprune.searching.search import SearchResult as SearchResult
    from transprune.searching.search import search as search
    from transprune.shrinking.adapters import register_adapter as register_adapter
    from transprune.shrinking.shrink import kept_entries as kept_entries
    from transprune.shrinking.shrink import shrink as shrink
    from transprune.shrinking.sort import sort_channels as sort_channels
    from transprune.shrinking.traced_network import TracedNetwork as TracedNetwork
    from transprune.space import SearchSpace as SearchSpace
    from transprune.space import depth_candidates as depth_candidates
    from transprune.space import width_candidates as width_candidates
    from transprune.tas.baselines import random_architecture as random_architecture
    from transprune.tas.baselines import uniform_architecture as uniform_architecture
    from transprune.tas.bilevel import Bilevel as Bilevel
    from transprune.tas.derivation import derive as derive
    from transprune.tas.expected_cost import ExpectedCost as ExpectedCost
    from transprune.tas.expected_cost import budget_penalty as budget_penalty
    from transprune.tas.probabilities import Probabilities as Probabilities
    from transprune.tas.sampling import ArchitectureParameters as ArchitectureParameters
    from transprune.tas.sampling import Selection as Selection
    from transprune.tas.supernet import Supernet as Supernet
    from transprune.training.detection import average_precisions as average_precisions
    from transprune.training.detection import detection as detection
    from transprune.training.evaluation import Evaluation as Evaluation
    from transprune.training.evaluation import Meter as Meter
    from transprune.training.evaluation import evaluate as evaluate
    from transprune.training.loop import Setup as Setup
    from transprune.training.parts import Part as Part
    from transprune.training.parts import Surroundings as Surroundings
    from transprune.training.parts import part_of as part_of
    from transprune.training.tasks import Metric as Metric
    from transprune.training.tasks import Task as Task
    from transprune.training.tasks import causal_lm as causal_lm
    from transprune.training.tasks import classification as classification
    from transprune.training.tasks import multi_label as multi_label
    from transprune.training.tasks import regression as regression
    from transprune.training.tasks import segmentation as segmentation
    from transprune.training.tasks import text_classification as text_classification
    from transprune.training.tasks import token_classification as token_classification
    from transprune.training.train import distill as distill
    from transprune.training.train import estimate_statistics as estimate_statistics
    from transprune.training.train import train as train
else:
    __all__, __getattr__, __dir__ = on_demand(__spec__)
