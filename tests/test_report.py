"""The report: one HTML page, read from the files of a run folder."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import matplotlib as mpl
import pytest

from fake_run import fake_run
from transprune.errors import RunFolderError
from transprune.reports.figures import short_names
from transprune.reports.report import write_report
from transprune.reports.run_record import read_record
from transprune.reports.words import by_chance, compact, headline, lost_images, points, verdict
from transprune.runs.results import show_results
from transprune.runtime import RunFolder
from transprune.runtime.terminal import duration
from transprune.tas.probabilities import UNDECIDED

VOID = {"meta", "link", "br", "hr", "img", "input"}
EVIL = '<script>alert("1")</script>&--> id="x" $\\frac{1}$'


class Page(HTMLParser):
    """A parsed page: its elements, its texts by the element that holds them, and whether every element is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: list[tuple[str, str]] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        data = data.replace("\xa0", " ")
        if data.strip():
            holder = self.open[-1] if self.open else ""
            self.texts.append(("hover" if holder == "title" and "svg" in self.open else holder, data))

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]

    def text(self, tag: str | None = None) -> str:
        return " ".join(data for holder, data in self.texts if tag in (None, holder))


def report(folder: Path) -> tuple[str, Page]:
    text = write_report(folder).read_text(encoding="utf-8")
    return text.replace("&nbsp;", " "), Page(text)


def change(folder: Path, name: str, edit) -> None:
    value = json.loads((folder / name).read_text(encoding="utf-8"))
    edit(value)
    (folder / name).write_text(json.dumps(value), encoding="utf-8")


def figure(text: str, title: str) -> str:
    return re.search(rf"<h3>{re.escape(title)}</h3>.*?</figure>", text, re.DOTALL)[0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return fake_run(tmp_path_factory.mktemp("runs") / "resnet20", blocks=3, epochs=12)


@pytest.fixture(scope="module")
def full(folder) -> tuple[str, Page]:
    return report(folder)


def test_the_report_is_written_into_the_run_folder(folder):
    assert write_report(folder) == folder / "report.html"


def test_the_page_asks_for_nothing_outside_itself(full):
    text, page = full
    assert not re.search(r"(https?:)?//", re.sub(r"base64,[\w+/=\s]+", "", text))
    assert not {"script", "link", "iframe", "object", "embed", "base"} & {tag for tag, _ in page.elements}
    assert not re.search(r"@import|url\((?!#)", text)
    for _, attributes in page.elements:
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href"):
            assert attributes.get(name, "#").startswith(("#", "data:image/png;base64,"))


def test_every_element_is_closed_and_every_id_unique_and_found(full):
    text, page = full
    assert page.open == []
    ids = Counter(attributes["id"] for _, attributes in page.elements if "id" in attributes)
    assert ids
    assert set(ids.values()) == {1}
    assert set(re.findall(r'(?:href="|url\()#([^")]+)', text)) <= set(ids)


def test_the_same_folder_gives_the_same_page(folder, full):
    assert report(folder)[0] == full[0]


def test_settings_of_matplotlib_neither_matter_nor_change(folder, full):
    with mpl.rc_context({"svg.fonttype": "path", "text.color": "red", "font.size": 30}):
        before = dict(mpl.rcParams)
        assert report(folder)[0] == full[0]
        assert dict(mpl.rcParams) == before


def test_headings_are_in_order_and_the_title_is_the_result(full):
    text, page = full
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch(r"h\d", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    title = "resnet20 on digits: 49.8 % of the MACs, 99.17 % → 98.89 % top-1 (0.28 points lower)"
    assert page.text("title") == title
    assert re.sub(r"<[^>]+>", "", re.search(r"<h1>(.*)</h1>", text)[1]) == title


def test_tables_have_captions_and_scopes_and_figures_have_descriptions(full):
    _, page = full
    tags = Counter(tag for tag, _ in page.elements)
    assert tags["table"] == tags["caption"] == 8
    assert all(cell.get("scope") in ("row", "col") for cell in page.all("th"))
    assert tags["svg"] == tags["figure"] == 17
    assert all(svg["role"] == "img" and len(svg["aria-label"]) > 30 for svg in page.all("svg"))
    assert page.all("html") == [{"lang": "en"}]


def test_values_show_under_the_pointer(full):
    said = full[1].text("hover")
    assert "stem.conv: 14 of 16" in said
    assert re.search(r"test, epoch \d+: \d+\.?\d* %", said)


def test_the_answers_of_the_student_are_shown_class_by_class(folder, full):
    text, page = full
    assert "2 taken for 7" in text
    cells = [cell for cell in page.all("td") if "--share" in cell.get("style", "")]
    assert len(cells) == 100
    assert sum(cell["class"] == "wrong" and cell["style"] != "--share:0.0" for cell in cells) == 1
    assert sum(cell["class"] == "right" for cell in cells) == 10


def test_an_earlier_run_has_no_matrix(tmp_path):
    folder = fake_run(tmp_path / "run", epochs=1)
    change(folder, "examples.json", lambda found: found.pop("confusions"))
    assert "--share:" not in report(folder)[0].partition("</style>")[2]


def test_what_scrolls_can_be_reached_by_keyboard(full):
    _, page = full
    scrolling = [attributes for tag, attributes in page.elements if tag == "pre" or attributes.get("class") == "scroll"]
    assert len(scrolling) == 11
    assert all(region["tabindex"] == "0" and region["aria-label"] for region in scrolling)


def test_figures_take_their_ink_from_the_page(full):
    text, _ = full
    svgs = "".join(re.findall(r"<svg.*?</svg>", text, re.DOTALL))
    assert "currentColor" in svgs
    assert set(re.findall(r"#[0-9a-f]{6}\b", svgs)) <= {"#1f7fc4", "#d9650f", "#7f8790"}


@pytest.mark.parametrize(
    ("top1", "said"),
    [
        (99.1667, "99.17 % → 99.17 % top-1 (unchanged)"),
        (99.7222, "99.17 % → 99.72 % top-1 (0.56 points higher)"),
        (99.1647, "99.17 % → 99.16 % top-1 (less than 0.01 points lower)"),
        ("nan", "resnet20 on digits: 49.8 % of the MACs"),
    ],
)
def test_the_sentence_tells_the_direction_of_the_change(tmp_path, top1, said):
    folder = fake_run(tmp_path / "run", epochs=2)
    change(folder, "result.json", lambda result: result["student"].update(top1=top1))
    assert headline(read_record(folder)).endswith(said)


def test_the_table_has_ratios_and_differences(full):
    text, _ = full
    rows = [re.sub(r"<[^>]+>", " ", row) for row in re.findall(r"<tr>(.*?)</tr>", text)[1:7]]
    assert [" ".join(row.split()) for row in rows] == [
        "Latency in torch on cpu, 1 thread, batch 1 1.284 ms 0.8710 ms 67.8 %",
        "Top-1 accuracy 99.17 % 98.89 % 0.28 points lower",
        "Top-5 accuracy 100.00 % 100.00 % unchanged",
        "MACs a sample 2.52 M 1.25 M 49.8 %",
        "Parameters 268.34 k 127.95 k 47.7 %",
        "File size 1.10 MB 534.53 kB 48.7 %",
    ]


def test_a_kept_budget_and_an_exceeded_one_are_told_apart(tmp_path, full):
    assert "Budget kept:" in full[1].text("strong")
    assert "1,253,455 MACs of at most 1,257,984 MACs (macs=0.5), 99.6 % of what is allowed." in full[1].text("p")
    folder = fake_run(tmp_path / "run", epochs=1)
    (folder / "journal.jsonl").unlink()
    change(folder, "result.json", lambda result: result["budgets"][0].update(actual=1_300_000))
    _, page = report(folder)
    assert "Budget exceeded:" in page.text("strong")
    assert "103.3 % of what is allowed" in page.text("p")


def test_a_budget_of_parameters_is_reported_as_such(tmp_path):
    folder = fake_run(tmp_path / "run", epochs=2)
    params = {"kind": "params", "target": 134168, "actual": 127954, "text": "params=0.5"}
    change(folder, "result.json", lambda result: result.update(budgets=[params]))
    journal = (folder / "journal.jsonl").read_text(encoding="utf-8").replace("_macs", "_params")
    (folder / "journal.jsonl").write_text(journal, encoding="utf-8")
    _, page = report(folder)
    assert "47.7 % of the parameters" in page.text("title")
    assert "Parameters over the search" in page.text("h3")


def test_groups_of_dropped_blocks_are_marked_and_only_those(folder, full):
    text, _ = full
    depths = json.loads((folder / "architecture.json").read_text())["depths"]
    assert depths == {"stages.0": 3, "stages.1": 2, "stages.2": 3}
    dropped = re.findall(r'<th scope="row">([^<]*)</th><td>32</td><td>dropped</td>', text)
    assert dropped == ["stages.1.2.layer1.conv", "stages.1.2.layer2.conv"]
    drawing = figure(text, "Full and kept width")
    assert drawing.count("dropped / 32") == 2
    assert drawing.count("fill: url(#width-bars-") == 2
    assert text.count('<i class="block dropped">') == 1
    assert text.count('<i class="block kept">') == 8


def test_a_block_is_not_taken_for_one_whose_name_begins_alike(tmp_path):
    folder = fake_run(tmp_path / "run", blocks=12, epochs=1)
    change(folder, "architecture.json", lambda value: value.update(depths={"stages.0": 2}))
    kept = [row.name for row in read_record(folder).groups if row.stage == "stages.0" and not row.is_dropped]
    assert kept == [f"stages.0.{block}.layer{layer}.conv" for block in (0, 1) for layer in (1, 2)]


def test_every_width_before_and_after_is_in_the_drawing_and_in_the_table(folder, full):
    text, _ = full
    drawing = figure(text, "Full and kept width")
    widths = json.loads((folder / "architecture.json").read_text())["widths"]
    for group in json.loads((folder / "space.json").read_text())["groups"]:
        if not group["name"].startswith("stages.1.2."):
            kept = widths[group["name"]]
            assert f">{kept} / {group['width']}<" in drawing
            assert f"{group['name']}</th><td>{group['width']}</td><td>{kept}</td>" in text


@pytest.mark.parametrize("epochs", [1, 400])
def test_a_network_of_110_layers_has_a_row_for_each_and_fits_in_two_megabytes(tmp_path, epochs):
    text, page = report(fake_run(tmp_path / "run", blocks=18, epochs=epochs))
    assert len(text.encode()) < 2_000_000
    labels = re.findall(r">(stages\.\d+\.\d+\.layer\d)<", figure(text, "Full and kept width"))
    assert len(set(labels)) == 108
    assert len(figure(text, "Depth of stages.0")) < 100_000
    heights = [float(svg["viewbox"].split()[3]) for svg in page.all("svg")]
    assert heights[1] == heights[2] == heights[3] > 1000


def test_texts_from_files_are_escaped_everywhere(tmp_path):
    folder = fake_run(tmp_path / "run", epochs=2)
    for name in ("space.json", "journal.jsonl"):
        evil = (folder / name).read_text().replace("stages.0", json.dumps(EVIL)[1:-1])
        (folder / name).write_text(evil)
    (folder / "environment.json").write_text(json.dumps({EVIL: EVIL}))
    change(folder, "result.json", lambda result: result.update(model=EVIL, data=EVIL))
    change(folder, "result.json", lambda result: result["budgets"][0].update(text=EVIL, kind=EVIL))
    lines = [{"event": "start", "command": [EVIL]}, {"event": "decision", "what": EVIL}, {"event": "warning", EVIL: 1}]
    with (folder / "journal.jsonl").open("a") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)
    (folder / "config.toml").write_text(f"text = '{EVIL}'")
    text, page = report(folder)
    assert not page.all("script")
    assert not page.open
    assert "<script" not in text
    assert page.text().count("<script>") > 10
    assert any(EVIL in svg["aria-label"] for svg in page.all("svg"))


def test_names_in_any_script_are_reported(tmp_path):
    folder = fake_run(tmp_path / "run", epochs=1)
    space = (folder / "space.json").read_text().replace("stem.conv", "层.🐍")
    (folder / "space.json").write_text(space, encoding="utf-8")
    assert "层.🐍" in report(folder)[0]


@pytest.mark.parametrize(
    ("until", "title", "notes", "drawings"),
    [
        (
            "teacher",
            "resnet20 on digits: teacher training at epoch 3 of 3; no architecture is chosen yet",
            ["Neither the teacher nor a student is measured yet.", "No width group is known yet.", "No stage is known"],
            2,
        ),
        (
            "search",
            "resnet20 on digits: 8 of 9 blocks kept, widths at 69.9 % of full on average; no student is measured yet",
            ["Neither the teacher nor a student is measured yet."],
            14,
        ),
    ],
)
def test_steps_that_are_not_done_are_named_and_left_out(tmp_path, until, title, notes, drawings):
    _, page = report(fake_run(tmp_path / "run", epochs=3, until=until))
    assert page.text("title") == title
    assert all(note in page.text("p") for note in notes)
    assert len(page.all("figure")) == drawings


@pytest.mark.parametrize("name", ["result", "architecture", "space", "environment", "journal"])
def test_any_one_file_may_be_missing(tmp_path, name):
    name += ".jsonl" if name == "journal" else ".json"
    folder = fake_run(tmp_path / "run", epochs=1)
    (folder / name).unlink()
    assert report(folder)[1].text("h1").startswith("resnet20 on digits:")


def test_a_resumed_phase_replaces_what_the_interrupted_one_left(tmp_path):
    folder = fake_run(tmp_path / "run", epochs=4, until="teacher")
    lines = (folder / "journal.jsonl").read_text().splitlines()
    again = json.dumps({"event": "epoch", "phase": "teacher", "epoch": 2, "epochs": 4, "top1": 12.5})
    (folder / "journal.jsonl").write_text("\n".join([*lines, again]) + "\n")
    text, _ = report(folder)
    assert "teacher training at epoch 2 of 4" in text
    assert "to 12.5 %" in figure(text, "Teacher")
    assert [entry["epoch"] for entry in read_record(folder).epochs("teacher")] == [1, 2]


def test_values_that_are_no_finite_numbers_leave_gaps(tmp_path):
    folder = fake_run(tmp_path / "run", epochs=3)
    journal = (folder / "journal.jsonl").read_text()
    journal = re.sub(r'("(?:top1|test_top1|entropy|expected_macs)": )[\d.]+', r'\1"nan"', journal)
    (folder / "journal.jsonl").write_text(journal)
    text, _ = report(folder)
    assert "Entropy of the choices" not in text
    assert "most probable" in figure(text, "MACs over the search")


def test_probabilities_of_another_space_are_not_drawn(tmp_path):
    folder = fake_run(tmp_path / "run", epochs=2)
    change(folder, "space.json", lambda space: space["groups"][0].update(candidates=[8, 16]))
    change(folder, "space.json", lambda space: space["stages"][0].update(candidates=[1, 3]))
    text, _ = report(folder)
    assert "Depth of stages.0" not in text
    assert "Depth of stages.1" in text


def test_a_folder_without_any_result_is_refused(tmp_path):
    with pytest.raises(RunFolderError, match=r"no step has left a result there yet.*run `transprune run`"):
        write_report(fake_run(tmp_path / "run", until="config"))
    with pytest.raises(RunFolderError, match="there is no such folder"):
        write_report(tmp_path / "missing")


@pytest.mark.parametrize(
    ("name", "content", "found"),
    [
        ("space.json", '{"groups": [{"width": 3}]}', "KeyError: 'name'"),
        ("architecture.json", "[1]", "it is a list"),
        ("result.json", "{", "no valid JSON"),
        ("journal.jsonl", "{}\nnonsense\n{}\n", "line 2"),
    ],
)
def test_a_malformed_file_is_refused_by_name(tmp_path, name, content, found):
    folder = fake_run(tmp_path / "run", epochs=1)
    (folder / name).write_text(content)
    with pytest.raises(RunFolderError, match=found) as caught:
        write_report(folder)
    assert name in str(caught.value)


def test_names_in_labels_are_short():
    assert short_names(["stem.conv", "stages.0.0.conv"]) == ["stem", "stages.0.0"]
    assert short_names(["conv", "fc"]) == ["conv", "fc"]
    assert short_names(["a" * 30 + "end", "b"]) == ["…" + "a" * 18 + "end", "b"]


def test_numbers_in_words():
    assert [compact(value) for value in (0, 1500, 40813194)] == ["0", "1.50 k", "40.81 M"]
    assert compact(812, "B") == "812 B"
    assert [duration(seconds) for seconds in (9.96, 59.99, 61, 7260)] == [
        "10.0 s",
        "1 min 0 s",
        "1 min 1 s",
        "2 h 1 min",
    ]
    assert [points(change) for change in (0, -0.3)] == ["unchanged", "0.30 points lower"]
    assert points(0.001) == "less than 0.01 points higher"


def test_widths_that_do_not_suit_the_hardware_are_named_with_their_share_of_the_macs(tmp_path, full):
    assert "--divisor" not in full[1].text("p")
    folder = fake_run(tmp_path / "run", epochs=1)
    widths = {"multiple_of": 8, "layers": 20, "unfriendly": ["stem.conv", "classifier"], "share_of_macs": 0.625}
    change(folder, "result.json", lambda result: result.update(widths=widths))
    _, page = report(folder)
    assert "62.5 % of the student’s MACs" in page.text("p")
    assert "2 of 20 layers" in page.text("p")
    assert "--divisor 8" in page.text("p")


def test_every_one_of_several_budgets_is_reported(tmp_path):
    folder = fake_run(tmp_path / "run", epochs=2)
    params = {"kind": "params", "target": 134168, "actual": 127954, "text": "params=0.5"}
    change(folder, "result.json", lambda result: result["budgets"].append(params))
    entries = [json.loads(line) for line in (folder / "journal.jsonl").read_text(encoding="utf-8").splitlines()]
    for entry in entries:
        if "target_macs" in entry:
            entry |= {f"{name}_params": entry[f"{name}_macs"] / 10 for name in ("expected", "actual", "target")}
    (folder / "journal.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries), encoding="utf-8")
    _, page = report(folder)
    assert page.text("strong").count("Budget kept:") == 2
    assert "of the MACs, 47.7 % of the parameters" in page.text("title")
    assert all(f"{name} over the search" in page.text("h3") for name in ("MACs", "Parameters"))


def test_every_layer_is_in_the_table_with_its_channels_and_macs_before_and_after(folder, full):
    text, _ = full
    widths = json.loads((folder / "architecture.json").read_text())["widths"]
    first, second = widths["stem.conv"], widths["stages.0.0.layer1.conv"]
    before, after = 9 * 64 * 16 * 16, 9 * 64 * first * second
    row = f"stages.0.0.layer1.conv</th><td>conv</td><td>16 → 16</td><td>{first} → {second}</td>"
    row += f"<td>{compact(before)}</td><td>{compact(after)} ({100 * after / before:.1f} %)</td>"
    assert row in text
    assert "stages.1.2.layer2.conv</th><td>conv</td><td>32 → 32</td><td>dropped</td>" in text
    assert "2 layers are dropped" in figure(text, "Layer by layer")


def test_classes_and_pictures_of_disagreement_are_shown(full):
    text, page = full
    assert "on 354 both are right (98.3 %); on 3 only the teacher is right (0.8 %)" in page.text("p")
    assert "same mistake" not in page.text("p")
    assert '2</th><td>36</td><td>100.0 %</td><td>97.2 %</td><td><span class="worse">−2.8</span></td>' in text
    assert '3</th><td>36</td><td>97.2 %</td><td>100.0 %</td><td><span class="better">+2.8</span></td>' in text
    assert [image["alt"] for image in page.all("img")][:2] == ["Test image 0, of class 0", "Test image 31, of class 1"]
    assert "Only the student is right (2 of 2 shown)" in page.text("h3")


def test_of_many_classes_those_with_the_largest_changes_are_shown(tmp_path):
    folder = fake_run(tmp_path / "run", epochs=1)
    many = [{"name": f"c{n}", "samples": 9, "teacher": 50.0, "student": 50.0 + n % 50} for n in range(1000)]
    change(folder, "examples.json", lambda value: value.update(classes=many))
    text, _ = report(folder)
    assert "the 24 of 1000 classes with the largest changes" in text
    assert text.count('<span class="better">') == 24
    assert "c49</th>" in text
    assert "c7</th>" not in text


def test_a_picture_is_nothing_but_a_picture(tmp_path):
    folder = fake_run(tmp_path / "run", epochs=1)
    evil = 'https://example.org/x.png" onerror="alert(1)'
    change(folder, "examples.json", lambda value: [each.update(image=evil) for each in value["examples"]])
    text, page = report(folder)
    assert "example.org" not in text
    assert all(image["src"] == "" for image in page.all("img"))


def test_a_point_of_a_frontier_leads_to_the_curve(tmp_path, full):
    assert "frontier.html" not in full[0]
    folder = fake_run(tmp_path / "frontier" / "macs-0.3", epochs=1)
    (folder.parent / "config.toml").write_text("")
    links = [link["href"] for link in report(folder)[1].all("a")]
    assert [link for link in links if not link.startswith("#")] == ["../frontier.html"]


def changed(folder: Path, name: str, **parts) -> None:
    """Replaces parts of a JSON file of a run folder."""
    file = folder / name
    file.write_text(json.dumps(json.loads(file.read_text()) | parts))


def noted(folder: Path, **entry) -> None:
    """Adds a decision to a journal."""
    with (folder / "journal.jsonl").open("a") as journal:
        journal.write(json.dumps({"time": "2026-11-23T11:00:00.000+01:00", "event": "decision", **entry}) + "\n")


def test_a_small_loss_is_said_to_be_within_chance(tmp_path):
    record = read_record(fake_run(tmp_path))
    first, *_ = verdict(record)
    assert lost_images(record) == (1, 5, 360)
    assert "49.8 % of the teacher’s MACs" in first
    assert "1 fewer of the 360 test images right (0.28 %)" in first
    assert "up to 5 images may be chance" in first


@pytest.mark.parametrize(("only_teacher", "is_chance"), [(30, False), (11, True)])
def test_a_loss_is_held_against_what_chance_explains(tmp_path, only_teacher, is_chance):
    folder = fake_run(tmp_path)
    counts = {"both_right": 300, "teacher_only": only_teacher, "student_only": 5, "both_wrong": 0, "same_mistake": 0}
    changed(folder, "examples.json", counts=counts)
    said = " ".join(verdict(read_record(folder)))
    assert ("more than chance explains" in said) is not is_chance
    assert ("win back most" in said) is not is_chance


@pytest.mark.parametrize("tosses", [1, 2, 4, 5, 6, 17, 100, 400])
def test_what_may_be_chance_is_counted_exactly(tosses):
    most, share = by_chance(tosses), lambda difference: (
        2 * sum(math.comb(tosses, heads) for heads in range((tosses - difference) // 2 + 1)) / 2**tosses
    )  # fmt: skip
    assert share(most) >= 0.05
    assert most + 2 > tosses or share(most + 2) < 0.05


def test_four_of_four_images_may_be_chance(tmp_path):
    folder = fake_run(tmp_path)
    counts = {"both_right": 243, "teacher_only": 0, "student_only": 4, "both_wrong": 0, "same_mistake": 3}
    changed(folder, "examples.json", counts=counts, samples=250)
    assert "a difference of up to 4 images may be chance" in verdict(read_record(folder))[0]


def test_what_a_detector_finds_is_counted_in_objects(tmp_path):
    folder = fake_run(tmp_path)
    counts = {"both_right": 128, "teacher_only": 12, "student_only": 2, "both_wrong": 12, "same_mistake": 0}
    changed(folder, "examples.json", counts=counts, samples=154, images=80)
    assert "10 fewer of the 154 objects right (6.49 %)" in verdict(read_record(folder))[0]


def test_a_gain_is_no_loss(tmp_path):
    folder = fake_run(tmp_path)
    counts = {"both_right": 300, "teacher_only": 2, "student_only": 40, "both_wrong": 0, "same_mistake": 0}
    changed(folder, "examples.json", counts=counts)
    said = verdict(read_record(folder))
    assert "38 more of the 360 test images" in said[0]
    assert "Next: nothing was lost, so a smaller budget may do." in said


def test_the_verdict_names_what_is_free_and_whether_the_search_decided(tmp_path):
    folder = fake_run(tmp_path)
    compared = {
        "what the search derived": {"loss": 0.4, "top1": 88.0},
        "uniform widths": {"loss": 0.7, "top1": 80.5},
    }
    noted(folder, what="Kept what the search derived: 1 MACs", why="it has the least loss", contenders=compared)
    said = verdict(read_record(folder))
    (kept,) = [each for each in said if "what the search derived had 88.0 %" in each]
    assert kept.endswith("uniform widths 80.5 %; the least loss decided.")
    assert any("had decided" in each for each in said)
    assert "within the budget" not in " ".join(said)
    del compared["uniform widths"]
    noted(folder, what="Kept what the search derived: 1 MACs", why="it has the least loss", contenders=compared)
    (free,) = [each for each in verdict(read_record(folder)) if "within the budget" in each]
    assert free.endswith("had 88.0 %. No uniform widths alone are within the budget: blocks have to go as well.")
    noted(folder, what="Kept uniform widths: 1 MACs", contenders={name: {"loss": 0.0, "r2": 0.9} for name in compared})
    change(folder, "result.json", lambda result: (result.update(metrics=["r2"]), result["student"].update(r2=0.8)))
    assert any("what the search derived had r2 0.9." in each for each in verdict(read_record(folder)))
    noted(folder, what=UNDECIDED, why="the entropy is 0.92 of 1")
    said = verdict(read_record(folder))
    assert any("has not decided: the entropy is 0.92 of 1." in each for each in said)
    assert not any("had decided" in each for each in said)


def test_time_that_does_not_follow_the_macs_is_said(tmp_path):
    folder = fake_run(tmp_path)
    assert any("68 % of the teacher’s time with 50 % of its MACs" in each for each in verdict(read_record(folder)))
    result = json.loads((folder / "result.json").read_text())
    changed(folder, "result.json", student=result["student"] | {"latency_ms": 0.6})
    assert not any("teacher’s time" in each for each in verdict(read_record(folder)))


def test_no_verdict_before_the_student_is_measured(tmp_path):
    assert verdict(read_record(fake_run(tmp_path, until="search"))) == []


def test_each_file_of_the_student_has_lines_that_use_it(tmp_path):
    folder = fake_run(tmp_path)
    assert "How to use" not in write_report(folder).read_text()
    for name in ("student.safetensors", "student.pt2", "student.onnx"):
        (folder / name).touch()
    page = Page(write_report(folder).read_text())
    lines = page.text("code")
    assert f"transprune.load('{folder}')" in lines
    assert f"torch.export.load('{folder}/student.pt2')" in lines
    assert f"onnxruntime.InferenceSession('{folder}/student.onnx')" in lines
    assert lines.count("(1, 1, 8, 8)") == 3


@pytest.mark.parametrize(
    ("name", "needed", "own"),
    [
        ("resnet20", "", ""),
        ("timm:resnet18", "", ""),
        ("hf:owner/name", "", ""),
        ("net.py:build", "from net import build\n", ", model=build()"),
        ("code/net.py:Net", "from net import Net  # code/net.py\n", ", model=Net()"),
        ("package.nets:small", "from package.nets import small\n", ", model=small()"),
        ("python:Net", "# network: ", ", model=network"),
    ],
)
def test_a_network_of_ones_own_is_built_before_its_student_is_loaded(tmp_path, name, needed, own):
    folder = fake_run(tmp_path)
    (folder / "student.safetensors").touch()
    change(folder, "architecture.json", lambda described: described.update(model={"name": name}))
    lines = Page(write_report(folder).read_text()).text("code")
    assert f"import torch, transprune\n{needed}" in lines
    assert f"transprune.load('{folder}'{own})" in lines


def test_inputs_are_described_with_their_figures_and_answers_with_their_classes(tmp_path):
    folder = fake_run(tmp_path)
    (folder / "student.onnx").touch()
    known = {"how": "pixels less mean", "mean": [0.4914, 0.5], "std": [0.25], "classes": ["cat", "dog"]}
    change(folder, "architecture.json", lambda described: described.update(preprocessing=known))
    page = write_report(folder).read_text().replace("&nbsp;", " ")
    assert "Inputs: pixels less mean; mean 0.4914, 0.5; std 0.25." in page
    assert "Answers: a logit for each class, in this order: cat, dog." in page


def test_the_latency_in_the_headline_is_the_one_in_the_table(tmp_path, capsys):
    folder = fake_run(tmp_path)
    budget = {"kind": "latency", "target": 700_000, "actual": 630_000, "share": 0.7, "text": "latency=0.7"}

    def timed(result: dict) -> None:
        result["budgets"] = [budget]
        result["teacher"] |= {"latency_ms": 2.0, "latency": 1_000_000}
        result["student"] |= {"latency_ms": 1.3, "latency": 630_000}

    change(folder, "result.json", timed)
    assert "65.0 % of the latency" in headline(read_record(folder))
    page = write_report(folder).read_text().replace("&nbsp;", " ")
    assert "predicted 0.6300 ms of at most 0.7000 ms (latency=0.7)" in page
    assert "The machine was slower in the end" in page
    assert "Measured, the student takes" not in page

    change(folder, "result.json", lambda result: result["student"].update(latency_ms=1.5))
    page = write_report(folder).read_text().replace("&nbsp;", " ")
    assert "Measured, the student takes 75.0 % of the time of the teacher, and 70.0 % is allowed" in page
    show_results(RunFolder(folder))
    said = " ".join(capsys.readouterr().out.split())
    assert "The machine was slower in the end" in said
    assert f"measure again while the machine does nothing else (`transprune evaluate {folder}`)" in said
    change(folder, "result.json", lambda result: result["teacher"].update(latency_ms=1.1))
    assert "The machine was slower" not in write_report(folder).read_text()

    for measured, kept in ((712_000, "kept"), (750_000, "NOT kept")):
        change(folder, "result.json", lambda result, each=measured: result["budgets"][0].update(measured=each))
        show_results(RunFolder(folder))
        said = " ".join(capsys.readouterr().out.split())
        share = f"{measured / 7000:.1f} %"
        assert (
            f"budget {kept}: measured 0.{measured // 100} ms of 0.7000 ms ({share}); 0.6300 ms were predicted" in said
        )
        page = write_report(folder).read_text().replace("&nbsp;", " ")
        assert f"{share} of what is allowed; 0.6300 ms were predicted." in page


def test_a_student_that_lost_by_being_trained_is_told(tmp_path):
    folder = fake_run(tmp_path)
    noted(folder, what="Kept what the search derived: 1 MACs", contenders={"what the search derived": {"top1": 97.0}})
    counts = {"both_right": 150, "teacher_only": 200, "student_only": 0, "both_wrong": 0, "same_mistake": 10}
    changed(folder, "examples.json", counts=counts)
    assert not any("took away more than it gave" in each for each in verdict(read_record(folder)))
    change(folder, "result.json", lambda result: result["student"].update(top1=42.8))
    assert any("It had 97.0 % before it was trained" in each for each in verdict(read_record(folder)))
    (folder / "examples.json").unlink()  # as of loaders, whose images are not counted
    assert any("the first epochs move the weights far" in each for each in verdict(read_record(folder)))
    change(folder, "result.json", lambda result: result["teacher"].update(top1=45.0))
    assert any("so its teacher, which has 45.0 %, took away more" in each for each in verdict(read_record(folder)))


def test_training_is_advised_where_something_was_lost_without_it(tmp_path):
    folder = fake_run(tmp_path)
    change(folder, "result.json", lambda result: result.update(is_trained=False))
    for lost, advised in ((3, True), (0, False)):
        counts = {"both_right": 350, "teacher_only": lost, "student_only": 0, "both_wrong": 0, "same_mistake": 0}
        changed(folder, "examples.json", counts=counts)
        assert any("`transprune distill` trains" in each for each in verdict(read_record(folder))) == advised


def test_a_run_made_in_python_has_the_measures_of_others_and_no_command(tmp_path):
    folder = fake_run(tmp_path)
    change(folder, "architecture.json", lambda described: described.update(model={"name": "python:Net"}))
    change(folder, "result.json", lambda result: result.update(metrics=["top1", "top5"]))
    page = write_report(folder).read_text().replace("&nbsp;", " ")
    assert "Top-1 accuracy" in page
    assert "0.28 points lower" in page
    assert "It was made in Python" in page


@pytest.mark.parametrize("until", ["result", "search"])
def test_the_curves_are_those_of_the_metric_of_the_task(tmp_path, until):
    folder = fake_run(tmp_path, until=until)
    journal = folder / "journal.jsonl"
    journal.write_text(journal.read_text().replace("top1", "rmse"))
    if until == "result":
        change(folder, "result.json", lambda result: result.update(metrics=["rmse"]))
        for network, value in (("teacher", 1.4), ("student", 1.5)):
            change(folder, "result.json", lambda result, of=network, rmse=value: result[of].update(rmse=rmse))
    page = write_report(folder).read_text().replace("&nbsp;", " ")
    assert "rmse of the supernet" in page
    assert "Line chart over" in page
    assert "top-1" not in page[page.index('id="training-epoch-by-epoch"') :]
    assert ("rmse; in the end 1.5 on the test split" in page) == ("<td>+0.1</td>" in page) == (until == "result")


def test_a_command_is_told_once_and_broken_at_no_hyphen(tmp_path):
    folder = fake_run(tmp_path)
    for _ in range(2):
        noted(folder, event="start", command=["transprune", "evaluate", "runs/first", "--json"])
    page = write_report(folder).read_text()
    assert page.count("transprune evaluate") == 1
    assert '<span class="whole">--json</span>' in page


def test_the_contents_lead_to_every_section(full):
    _, page = full
    places = [each["id"] for each in page.all("h2")]
    assert [each["href"] for each in page.all("a")][: len(places)] == [f"#{place}" for place in places]
    assert len(places) == len(set(places)) > 5


def test_objects_and_pictures_with_boxes_are_shown_of_detectors(tmp_path):
    folder = fake_run(tmp_path / "run", epochs=1)
    counts = {"both_right": 30, "teacher_only": 6, "student_only": 0, "both_wrong": 4}
    picture = "data:image/png;base64,AAAA"
    shown = [{"kind": "teacher_only", "place": 3, "objects": 5, "teacher": 4, "student": 1, "image": picture}]
    classes = [{"name": "cat", "samples": 40, "teacher": 61.5, "student": 58.25}]
    record = {"format": 1, "form": "boxes", "images": 8, "samples": 40, "counts": counts}
    (folder / "examples.json").write_text(json.dumps({**record, "classes": classes, "examples": shown}))
    _, page = report(folder)
    said = "Of 40 objects on 8 test images, both find 30 (75.0 %), only the teacher finds 6 (15.0 %), neither finds 4"
    assert said in page.text("p")
    assert "Most objects that only the teacher finds" in page.text("h3")
    assert [image["alt"] for image in page.all("img")] == ["Test image 3, with 5 objects"]
    assert "58.2 %" in page.text("td")
