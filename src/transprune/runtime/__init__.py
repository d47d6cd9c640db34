"""Run folders, checkpoints, journal, log, progress, environment and seeds; independent of machine learning."""

from typing import TYPE_CHECKING

from transprune.on_demand import on_demand

if TYPE_CHECKING:
    from transprune.runtime.checkpoint import Checkpoints as Checkpoints
    from transprune.runtime.environment import keep_kernels as keep_kernels
    from transprune.runtime.files import FolderLock as FolderLock
    from transprune.runtime.interruption import Terminated as Terminated
    from transprune.runtime.interruption import raising_on_termination as raising_on_termination
    from transprune.runtime.journal import Journal as Journal
    from transprune.runtime.journal import Tracker as Tracker
    from transprune.runtime.journal import attach_run_log as attach_run_log
    from transprune.runtime.journal import is_epoch as is_epoch
    from transprune.runtime.journal import read_journal as read_journal
    from transprune.runtime.run_folder import RUN_FILES as RUN_FILES
    from transprune.runtime.run_folder import RunFolder as RunFolder
    from transprune.runtime.seeds import KeptGenerator as KeptGenerator
    from transprune.runtime.seeds import choose_device as choose_device
    from transprune.runtime.seeds import phase_seed as phase_seed
    from transprune.runtime.seeds import random_states as random_states
    from transprune.runtime.seeds import seeded as seeded
    from transprune.runtime.seeds import set_random_states as set_random_states
    from transprune.runtime.structures import Inputs as Inputs
    from transprune.runtime.structures import to_plain as to_plain
    from transprune.runtime.terminal import announce as announce
    from transprune.runtime.terminal import print_table as print_table
    from transprune.runtime.terminal import progress_bar as progress_bar
    from transprune.runtime.terminal import track as track
    from transprune.runtime.user_code import UserFunction as UserFunction
else:
    __all__, __getattr__, __dir__ = on_demand(__spec__)
