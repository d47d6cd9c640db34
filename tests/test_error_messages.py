"""Every error that the library raises, and the facts that its message must give.

`error_facts.json` is the table: what was attempted first, then names, figures, and what mends it; the wording around
them is free. `provoked_errors.py` has a way to each.
"""

import ast
import json
import sys
import warnings
from pathlib import Path

import pytest

import provoked_errors
import transprune
from transprune import errors

HERE = Path(__file__).parent
FACTS = json.loads((HERE / "error_facts.json").read_text(encoding="utf-8"))
SOURCE = Path(transprune.__file__).parent
ERRORS = {name for name in vars(errors) if name.endswith("Error")}


@pytest.fixture(scope="module")
def provoked(tmp_path_factory):
    """The message of every way, and the places in the code at which the errors were made."""
    messages, places = {}, set()
    make = errors.TranspruneError.__init__

    def noted(error, *arguments):
        frame = sys._getframe(1)
        while Path(frame.f_code.co_filename) == Path(errors.__file__):
            frame = frame.f_back
        places.add((Path(frame.f_code.co_filename), frame.f_lineno))
        make(error, *arguments)

    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch.setattr(errors.TranspruneError, "__init__", noted)
        for name, way in provoked_errors.WAYS.items():
            place = tmp_path_factory.mktemp(name)
            with pytest.raises(errors.TranspruneError) as caught:
                way(place)
            messages[name] = str(caught.value).replace(str(place), "{tmp}").replace(str(Path.cwd()), "{cwd}")
    return messages, places


@pytest.mark.parametrize("name", provoked_errors.WAYS)
def test_a_message_gives_its_facts(name, provoked):
    message = provoked[0][name]
    assert [fact for fact in FACTS[name] if fact not in message] == [], message


def test_every_row_of_the_table_has_a_way():
    assert FACTS.keys() == provoked_errors.WAYS.keys()


def test_every_row_has_more_than_what_was_attempted():
    assert [name for name, facts in FACTS.items() if len(facts) < 2] == []


def test_every_place_that_makes_an_error_has_a_row(provoked):
    missing = []
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ERRORS:
                lines = range(node.lineno, node.end_lineno + 1)
                if not any(place == path and line in lines for place, line in provoked[1]):
                    missing.append(f"{path.relative_to(SOURCE)}:{node.lineno}")
    assert missing == []


def test_every_message_says_what_could_not_be_done(provoked):
    others = [name for name, message in provoked[0].items() if not message.startswith("cannot ")]
    assert others == ["batch_form", "stopped"], "the first is the reason in another message, the second is no failure"
