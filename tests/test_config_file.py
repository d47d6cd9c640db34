"""Options from a TOML file: what it says, what it leaves open, and what is refused."""

import contextlib
import json
from dataclasses import asdict, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from test_fuzzing import SHARED_FOLDER, changed, damaged, only_ours
from transprune.cli.arguments import read_command
from transprune.errors import OptionError
from transprune.options import PRESETS, get_preset
from transprune.records import FORMAT, to_toml
from transprune.runs import RunOptions
from transprune.runs.run_options import preset_options, read_config


def command(place, text, *arguments, verb="run"):
    """The command of a file and what else stands on the command line."""
    (place / "options.toml").write_text(text)
    return read_command([verb, *arguments, "--config", str(place / "options.toml"), "--out", "nowhere"])


def refused(place, text, *arguments):
    with pytest.raises(OptionError) as caught:
        command(place, text, *arguments)
    return str(caught.value)


SOME = 'model = "resnet20"\nbudget = ["macs=0.5"]\npreset = "quick"\n[search]\nepochs = 3\n'


@pytest.mark.parametrize("verb", ["run", "search"])
def test_what_the_file_says_comes_before_the_preset(tmp_path, verb):
    options = command(tmp_path, SOME, verb=verb).options()
    assert (options.model, options.budget, options.preset) == ("resnet20", ("macs=0.5",), "quick")
    assert options.search == replace(get_preset("quick").search, epochs=3)
    assert options.teacher == get_preset("quick").teacher


def test_what_the_command_line_says_comes_before_the_file(tmp_path):
    given_too = ("resnet32", "--preset", "demo", "--search.epochs", "4", "--budget", "params=0.3")
    options = command(tmp_path, SOME, *given_too).options()
    assert (options.model, options.budget, options.preset) == ("resnet32", ("params=0.3",), "demo")
    assert options.search == replace(get_preset("demo").search, epochs=4)
    assert command(tmp_path, SOME, "--preset=demo").options().search == replace(get_preset("demo").search, epochs=3)


def test_a_file_may_say_none(tmp_path):
    options = command(tmp_path, SOME + 'derivation_seconds = "None"\n').options()
    assert options.search.derivation_seconds is None


def test_what_nobody_says_is_asked_for(tmp_path, capsys):
    with pytest.raises(SystemExit):
        command(tmp_path, 'budget = ["macs=0.5"]\n')
    assert "MODEL" in capsys.readouterr().err


@st.composite
def run_options(draw):
    """Options of a run with None in some places."""
    options = preset_options(draw(st.sampled_from(sorted(PRESETS))))
    nothing_or = draw(st.sampled_from([None, 1, 5]))
    search = replace(options.search, width_samples=nothing_or, depth_samples=draw(st.sampled_from([None, 2])))
    return replace(
        options,
        model="resnet20",
        budget=tuple(draw(st.lists(st.sampled_from(["macs=0.5", "params=1K"]), max_size=2))),
        keep=tuple(draw(st.lists(st.text(max_size=5), max_size=2))),
        weights=draw(st.none() | st.text(min_size=1, max_size=5)),
        image_size=draw(st.none() | st.just((3, 8, 8))),
        search=search,
    )


@given(run_options())
@settings(SHARED_FOLDER, max_examples=25)
def test_the_configuration_of_a_run_gives_the_same_run(tmp_path, options):
    text = to_toml({"format": FORMAT, **asdict(options)})
    assert command(tmp_path, text).options() == options


def test_a_configuration_with_parts_left_out_takes_them_from_its_preset(tmp_path):
    options = replace(preset_options("quick"), model="resnet20", budget=("macs=0.5",))
    config = asdict(options)
    del config["teacher"], config["search"]["epochs"]
    assert command(tmp_path, to_toml({"format": FORMAT, **config})).options() == options


def test_a_wrong_name_is_answered_with_the_nearest_and_its_table(tmp_path):
    assert "search.epoch is unknown" in refused(tmp_path, "[search]\nepoch = 3\n")
    assert "did you mean 'epochs'?" in refused(tmp_path, "[search]\nepoch = 3\n")
    assert "did you mean 'search'?" in refused(tmp_path, "[serch]\nepochs = 3\n")
    assert "did you mean 'quick'?" in refused(tmp_path, 'preset = "quik"\n')


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("seed = 1.5", "seed is 1.5, expected a whole number"),
        ("preset = 3", "preset is 3, expected a text"),
        ('budget = "macs=0.5"', "budget is 'macs=0.5', expected a list"),
        ("teacher = 3", "teacher is 3, expected an object"),
        ("[teacher]\nepochs = 0", "cannot use epochs=0: expected at least 1"),
        ('student = "nobody"', "student is 'nobody', expected one of scratch, teacher, supernet, repaired"),
        ("format = 99", "it is of format 99"),
        ("seed = ", "it is no valid TOML"),
    ],
)
def test_a_wrong_value_is_refused_with_the_file_and_the_place(tmp_path, text, said):
    message = refused(tmp_path, text)
    assert said in message
    assert str(tmp_path / "options.toml") in message


def test_a_file_that_cannot_be_read_is_refused(tmp_path):
    for path in (tmp_path / "none.toml", tmp_path):
        with pytest.raises(OptionError, match="cannot read the options"):
            read_config(path)


def test_values_without_a_file_are_refused_without_naming_one():
    with pytest.raises(OptionError, match=r"^cannot use the options: search\.epoch is unknown, "):
        preset_options("quick", {"search": {"epoch": 3}})


CONFIG = asdict(replace(preset_options("quick"), model="resnet20", budget=("macs=0.5",)))


@given(st.binary(max_size=80) | damaged(to_toml({"format": FORMAT, **CONFIG}).encode()))
@SHARED_FOLDER
def test_whatever_the_file_holds_only_our_own_errors_come_out(tmp_path, content):
    (tmp_path / "options.toml").write_bytes(content)
    with only_ours:
        assert isinstance(preset_options("quick", read_config(tmp_path / "options.toml")), RunOptions)


@given(changed(json.loads(json.dumps(CONFIG))), st.booleans())
@SHARED_FOLDER
def test_whatever_values_the_file_holds_only_our_own_errors_come_out(tmp_path, value, is_whole):
    with only_ours, contextlib.suppress(SystemExit):
        config = {**(value if isinstance(value, dict) else {"value": value})}
        command(tmp_path, to_toml({"format": FORMAT, **config} if is_whole else config))
