"""The command line: help on one screen, every option within reach, words that are nearly right, completion."""

import logging
import os
import pkgutil
import re
import select
import shutil
import subprocess
import sys
from dataclasses import fields

import pytest

import transprune
import transprune.runs
import transprune.runtime
from transprune.cli import main
from transprune.cli.arguments import COMMANDS, EVERYDAY, RESUMED, read_command
from transprune.cli.completion import CompletionCommand, options_of
from transprune.cli.entry import explaining
from transprune.cli.jobs import CompressCommand, Job
from transprune.errors import OptionError

SCREEN = 66
"""Lines."""
VERBS = list(COMMANDS)
RUN = ("run", "resnet20", "--budget", "macs=0.5", "--out", "x")


@pytest.fixture(autouse=True)
def _terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")


def printed(capsys, *arguments, code=0):
    """What a command that ends by itself prints, on standard output or as an error."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert (end.value.code or 0) == code
    out, err = capsys.readouterr()
    return err if code else out


def flags(text):
    return set(re.findall(r"(?<![\w-])--[a-z][a-z0-9.-]*", text))


@pytest.mark.parametrize("arguments", [[], *([verb] for verb in VERBS), ["run", "--resume"]], ids=" ".join)
def test_help_fits_on_a_screen_and_shows_a_command_that_is_one(capsys, arguments):
    text = printed(capsys, *arguments, "--help")
    lines = text.splitlines()
    assert len(lines) <= SCREEN
    assert max(map(len, lines)) <= 80
    assert "(default: )" not in text
    (example,) = [line for line in lines if line.startswith("transprune ")]
    assert read_command(example.partition(" >")[0].split()[1:])
    assert arguments[:1] == [] or example.split()[1] == arguments[0]


def test_help_ends_in_a_terminal_of_few_columns(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "3")
    assert len(printed(capsys, "run", "--help").splitlines()) < 4 * SCREEN


def test_the_version_is_printed(capsys):
    assert printed(capsys, "--version") == f"transprune {transprune.__version__}\n"


def test_the_help_of_all_verbs_names_each_with_its_purpose(capsys):
    text = printed(capsys, "-h")
    assert text == printed(capsys, "--help-all")
    for verb, kind in COMMANDS.items():
        assert re.search(rf"• {verb} +{re.escape(kind.__doc__.strip()[:20])}", text)
    for code in (0, 2, 75, 130, 143):
        assert re.search(rf"\b{code}\b", text)


def test_no_arguments_are_answered_with_the_help_of_all_verbs(capsys):
    assert printed(capsys) == printed(capsys, "--help")


@pytest.mark.parametrize("verb", VERBS)
def test_all_options_are_to_be_found(capsys, verb):
    everything = printed(capsys, verb, "--help-all")
    options = options_of(COMMANDS[verb])
    assert set(options) <= flags(everything)
    assert flags(printed(capsys, verb, "--help")) - {"--help-all"} <= flags(everything)


@pytest.mark.parametrize("verb", VERBS)
def test_only_what_has_no_default_is_called_required(capsys, verb):
    text = printed(capsys, verb, "--help-all")
    # MODEL or the folder, and --out
    required = {"run": 2, "compress": 2, "derive": 2, "search": 2, "compare": 0}.get(verb, 1)
    assert text.count("(required)") == required
    assert "{True,False}" not in text


@pytest.mark.skipif(not hasattr(select, "poll"), reason="the system cannot tell")
def test_a_command_whose_reader_has_gone_ends_quietly():
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "transprune", "completion", "bash"]
    ended = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)
    assert (ended.returncode, ended.stderr) == (141, b"")


def test_another_broken_pipe_is_an_error():
    with pytest.raises(BrokenPipeError), explaining():
        raise BrokenPipeError


@pytest.mark.parametrize(
    ("verb", "others"),
    [
        ("report", {"--device"}),
        ("measure", {"--tracker", "--max-minutes"}),
        ("evaluate", {"--max-minutes", "--checkpoint-steps", "--on-divergence"}),
        ("export", {"--max-minutes"}),
        ("distill", {"--resume"}),
        ("compress", {"--teacher.epochs", "--search.epochs", "--student", "--weights-partial"}),
        ("compress", {"--max-minutes", "--checkpoint-steps", "--on-divergence"}),
    ],
)
def test_a_verb_takes_no_option_that_does_nothing(capsys, verb, others):
    assert not flags(printed(capsys, verb, "--help-all")) & others


def test_the_everyday_options_are_a_part_of_all(capsys):
    assert set(EVERYDAY) < {item.name for item in fields(CompressCommand)}
    text = printed(capsys, "run", "--help")
    assert "--help-all" in text
    assert "--search.epochs" not in text
    assert "--plan" in text


def test_help_says_no_more_than_it_knows_of_a_preset(capsys):
    text = printed(capsys, "run", "--preset", "quick", "--help-all")
    assert re.search(r"--search\.epochs INT[^(]*\(default: 8\)", text)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["rnu"], "did you mean 'run'?"),
        (["evalute", "runs/first"], "did you mean 'evaluate'?"),
        (["run", "resnet20", "--bugdet", "macs=0.5", "--out", "x"], "--budget"),
        (["run", "resnet20", "--budget", "macs=0.5", "--out", "x", "--search.epoch", "3"], "--search.epochs"),
        (["run", "resnet20", "--weight", "x", "--budget", "macs=0.5", "--out", "x"], "did you mean --weights or"),
        (
            ["run", "resnet20", "--budget", "macs=0.5", "--out", "x", "--zzz"],
            "cannot use --zzz: `transprune run --help-all`",
        ),
        (["run", "resnet20", "--budget", "macs=0.5", "--out", "x", "--preset", "quik"], "did you mean 'quick'?"),
        (["run", "resnet20", "--budget", "macs=0.5", "--out", "x", "--augment", "standrd"], "standard"),
        (["run", "resnet20", "--budget", "macs=0.5", "--out", "x", "--data", "digit"], "did you mean digits?"),
        (["run", "resnet20", "--budget", "macs=0.5", "--out", "x", "--data", "."], "did you mean imagefolder:.?"),
        (["run", "resnet20", "--budget", "flops=0.5", "--out", "x"], "did you mean macs=0.5?"),
        (["run", "resnet20", "--budget", "macs=0,5", "--out", "x"], "did you mean macs=0.5?"),
        (["run"], "MODEL"),
        (["run", "resnet20"], "--budget KIND=AMOUNT"),
        (["derive", "runs/half"], "--budget KIND=AMOUNT"),
        (["run", "net.pth", "--budget", "macs=0.5", "--out", "x"], "net.py:build --weights net.pth"),
        (["run", "net.py:build", "--budget", "macs=0.5", "--out", "x"], "--data imagefolder:photos"),
        (["inspect", "resnet5"], "did you mean 'resnet56'?"),
        (["inspect", "resnet56", "--num-class", "3"], "--num-classes"),
        (["completion", "bsh"], "bash"),
        (["run", "resnet20", "--out", "x", "--budget"], "--budget KIND=AMOUNT"),
        (["run", "resnet20", "--budget", "--out", "x"], "--budget KIND=AMOUNT"),
        ([*RUN, "--image-size", "16", "16"], "expected 3 whole numbers, found '16 16'"),
        ([*RUN, "--std", "imagnet"], "expected numbers or one of imagenet, cifar10,"),
        ([*RUN, "--search.epochs", "1.5"], "expected a whole number, found '1.5'"),
        ([*RUN, "--search.architecture-betas", "0.5", "x"], "expected 2 numbers, found '0.5 x'"),
        ([*RUN, "--max-minutes", "soon"], "expected a number, found 'soon'"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_a_word_that_is_nearly_right_is_answered_with_the_right_one(capsys, tmp_path, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    assert said in printed(capsys, *arguments, code=2)
    assert list(tmp_path.iterdir()) == []


def test_all_that_is_missing_is_named_at_once(capsys):
    for verb, missing in (("run", ("MODEL", "--budget", "--out")), ("derive", ("RUN", "--budget", "--out"))):
        assert all(each in printed(capsys, verb, code=2) for each in missing)


def test_data_of_a_file_of_options_are_data(tmp_path):
    (tmp_path / "o.toml").write_text('model = "net.py:build"\ndata = "digits"\nbudget = ["macs=0.5"]\n')
    assert read_command(["run", "--config", str(tmp_path / "o.toml"), "--out", "x"]).options().data == "digits"
    assert read_command(["run", "resnet20", "--budget", "macs=0.5", "--out", "x"]).options().data == "digits"


def test_an_unknown_verb_is_one_of_our_errors():
    with pytest.raises(OptionError, match="expected one of run, compress, derive, search"):
        read_command(["cook"])


# --- completion -------------------------------------------------------------------------------------------------


@pytest.fixture
def script(capsys, tmp_path):
    def written(shell):
        capsys.readouterr()
        CompletionCommand(shell=shell)()
        path = tmp_path / f"transprune.{shell}"
        path.write_text(capsys.readouterr().out)
        return path

    return written


COMPLETE = """
source "$0"
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
_transprune
printf '%s\\n' "${COMPREPLY[@]}"
"""


def completed(script, *words):
    """What bash has for the last of these words."""
    done = subprocess.run(
        ["bash", "-c", COMPLETE, str(script("bash")), *words], check=True, capture_output=True, text=True
    )
    return done.stdout.split()


def test_the_script_for_bash_is_valid_and_leaves_files_to_bash(script):
    subprocess.run(["bash", "-n", str(script("bash"))], check=True)
    assert script("bash").read_text().endswith("complete -o default -F _transprune transprune\n")


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["r"], ["run", "report"]),
        ([""], VERBS),
        (["run", "resnet5"], ["resnet56", "resnet50", "resnet50-strided"]),
        (["run", "resnet20", "--bud"], ["--budget"]),
        (["run", "resnet20", "--search.warm"], ["--search.warm-up-epochs"]),
        (["run", "resnet20", "--preset", "paper"], ["paper-cifar", "paper-imagenet"]),
        (["search", "resnet20", "--student", "s"], ["scratch", "supernet"]),
        (["run", "resnet20", "--checkpoint-s"], ["--checkpoint-steps"]),
        (["inspect", "resnet20", "--js"], ["--json"]),
        (["measure", "runs/first", "--th"], ["--threads"]),
        (["distill", "runs/fi"], []),
        (["run", "resnet20", "--config", "o"], []),
        (["completion", "f"], ["fish"]),
    ],
    ids=" ".join,
)
def test_bash_completes(script, words, found):
    assert completed(script, "transprune", *words) == found


def test_every_verb_of_the_script_is_completed_with_its_options_alone(script):
    for verb in ("report", "compare", "measure"):
        assert set(completed(script, "transprune", verb, "x", "--")) == set(options_of(COMMANDS[verb]))


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_the_scripts_for_other_shells_are_valid(script, shell):
    path = script(shell)
    assert "--search.epochs" in path.read_text() or "-l search.epochs" in path.read_text()
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    subprocess.run([shell, "-n", str(path)], check=True)


def test_a_run_that_is_gone_on_with_has_options_of_its_own():
    assert set(RESUMED) == {verb for verb, kind in COMMANDS.items() if issubclass(kind, Job)}
    assert "--max-minutes" in options_of(RESUMED["run"])


# --- what is imported -------------------------------------------------------------------------------------------

HEAVY = {"torch", "torchvision", "numpy", "scipy", "sklearn", "matplotlib", "onnx", "onnxruntime", "pyarrow", "PIL"}
ASK = """
import sys
from transprune.cli import main
try:
    main({arguments!r})
except SystemExit:
    pass
print(*sys.modules, file=sys.stderr)
"""


@pytest.mark.parametrize(
    "arguments",
    [["--version"], ["--help"], *([verb, "--help"] for verb in VERBS), ["run", "--help-all"], ["rnu"], ["run", "x"]],
    ids=" ".join,
)
def test_help_and_mistakes_are_answered_before_anything_heavy_is_imported(arguments):
    ask = ASK.format(arguments=arguments)
    done = subprocess.run([sys.executable, "-c", ask], check=True, capture_output=True, text=True)
    imported = done.stderr.splitlines()[-1].split()
    assert "transprune.cli.entry" in imported
    assert not HEAVY & set(imported)


SAYS_FIRST = """
import sys
from transprune.cli import main
class Said:
    def write(self, text):
        if text.strip():
            print(text, "torch" in sys.modules, file=sys.__stdout__)
            sys.exit(0)
    def flush(self):
        pass
sys.stderr = Said()
main({arguments!r})
"""


@pytest.mark.parametrize("arguments", [["inspect", "resnet20"], ["compare", "runs/a"], ["measure", "runs/a"]])
def test_a_command_says_a_word_before_torch_is_loaded(arguments):
    ask = [sys.executable, "-c", SAYS_FIRST.format(arguments=arguments)]
    done = subprocess.run(ask, check=True, capture_output=True, text=True)
    assert done.stdout == "transprune: starting False\n"


def test_a_name_that_a_package_offers_is_no_module_of_it():
    for package in (transprune, transprune.runs, transprune.runtime):
        modules = {module.name for module in pkgutil.iter_modules(package.__path__)}
        assert not modules & set(package.__all__), "importing the module would put it in the name's place"
        assert set(package.__all__) == set(dir(package))
        assert all(getattr(package, name) is not None for name in package.__all__)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no device that is always full")
@pytest.mark.parametrize(
    ("verb", "place", "code", "said"),
    [
        ("inspect resnet20", ">/dev/full", 2, "cannot write to"),
        ("completion bash", ">&-", 0, ""),
        ("completion bash", "2>&-", 0, ""),
    ],
)
def test_a_standard_output_that_is_full_or_closed_ends_without_a_traceback(verb, place, code, said):
    command = f'"{sys.executable}" -m transprune {verb} {place}'
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_another_error_of_the_system_is_not_blamed_on_standard_output():
    with pytest.raises(OSError, match="no route"), explaining():
        raise OSError(113, "no route to the host")


INTERRUPTED = """
import builtins
import sys
from transprune.cli import main
usual = builtins.__import__
def interrupted(name, *rest):
    if name == sys.argv[1]:
        raise KeyboardInterrupt
    return usual(name, *rest)
builtins.__import__ = interrupted
main(["inspect", "resnet20"])
"""


@pytest.mark.parametrize("module", ["cli.entry", "errors", "cli.arguments", "cli.jobs"])
def test_ctrl_c_while_the_command_line_is_imported_is_answered(module):
    ask = [sys.executable, "-c", INTERRUPTED, f"transprune.{module}"]
    done = subprocess.run(ask, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (130, 1), done.stderr
    assert done.stderr.startswith("transprune: interrupted; ")


@pytest.mark.parametrize(("encoding", "written"), [("ascii", b"\\udcff \\xd7"), ("utf-8", b"\xff \xc3\x97")])
def test_no_character_ends_a_command_on_a_terminal_or_pipe_of_another_encoding(encoding, written):
    code = "from transprune.cli.entry import say_what_can_be_said as say; say(); print('\\udcff \xd7')"
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=True)
    assert done.stdout.strip() == written


def test_a_warning_fits_the_terminal_and_stays_whole_elsewhere(capsys, monkeypatch):
    warned = " ".join(["a warning of many words"] * 9)
    for is_terminal in (False, True):
        monkeypatch.setattr(sys.stderr, "isatty", lambda is_terminal=is_terminal: is_terminal)
        with explaining():
            logging.getLogger("transprune.run").warning("%s", warned)
        lines = capsys.readouterr().err.splitlines()
        assert " ".join(line.strip() for line in lines) == warned
        assert (max(map(len, lines)) <= 80) is is_terminal
