"""Run folders, checkpoints, journal, log, progress, environment and seeds; knows no machine learning."""

from transprune.runtime.checkpoint import CheckpointOptions, Checkpoints
from transprune.runtime.duration import duration
from transprune.runtime.environment import environment
from transprune.runtime.interruption import Terminated, raising_on_sigterm
from transprune.runtime.journal import Journal, is_epoch, read_journal
from transprune.runtime.kernel_cache import keep_kernels
from transprune.runtime.lock import FolderLock
from transprune.runtime.log import attach_run_log
from transprune.runtime.phase_progress import PhaseProgress, phase_progress
from transprune.runtime.plain import to_plain
from transprune.runtime.progress import announce, bar, track
from transprune.runtime.run_folder import RUN_FILES, RunFolder
from transprune.runtime.seeds import (
    KeptGenerator,
    choose_device,
    phase_seed,
    random_states,
    seeded,
    set_random_states,
)
from transprune.runtime.tables import print_table
from transprune.runtime.tracking import Tracker
from transprune.runtime.user_code import UserFunction

__all__ = [
    "RUN_FILES",
    "CheckpointOptions",
    "Checkpoints",
    "FolderLock",
    "Journal",
    "KeptGenerator",
    "PhaseProgress",
    "RunFolder",
    "Terminated",
    "Tracker",
    "UserFunction",
    "announce",
    "attach_run_log",
    "bar",
    "choose_device",
    "duration",
    "environment",
    "is_epoch",
    "keep_kernels",
    "phase_progress",
    "phase_seed",
    "print_table",
    "raising_on_sigterm",
    "random_states",
    "read_journal",
    "seeded",
    "set_random_states",
    "to_plain",
    "track",
]
