"""Run folders, journal, log, progress, environment and seeds; knows no machine learning."""

from transprune.runtime.environment import environment
from transprune.runtime.journal import Journal, read_journal
from transprune.runtime.log import attach_run_log
from transprune.runtime.plain import to_plain
from transprune.runtime.progress import EpochProgress, epoch_progress, track
from transprune.runtime.run_folder import RUN_FILES, RunFolder
from transprune.runtime.seeds import choose_device, phase_seed, seeded
from transprune.runtime.tables import print_table

__all__ = [
    "RUN_FILES",
    "EpochProgress",
    "Journal",
    "RunFolder",
    "attach_run_log",
    "choose_device",
    "environment",
    "epoch_progress",
    "phase_seed",
    "print_table",
    "read_journal",
    "seeded",
    "to_plain",
    "track",
]
