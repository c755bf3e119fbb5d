"""The almanac's files pass their checks, and each check finds the fault that it is there for."""

import copy
import importlib.util
import sys
from pathlib import Path

import pytest

from sleep_trl.data.sources import read_memories

FOLDER = Path(__file__).resolve().parents[2] / "examples" / "almanac"
spec = importlib.util.spec_from_file_location("almanac_check", FOLDER / "check.py")
check = importlib.util.module_from_spec(spec)
spec.loader.exec_module(check)

SHIPPED = {name: check.read(FOLDER / name) for name in check.FILES}


@pytest.fixture
def files():
    return copy.deepcopy(SHIPPED)


def test_shipped_files_have_no_problem(files):
    assert check.problems(files) == []


@pytest.mark.parametrize("name", check.FILES)
def test_a_night_reads_them(name):
    read = read_memories(str(FOLDER / name))
    assert [memory.id for memory in read] == [row["id"] for row in SHIPPED[name]]
    for memory, row in zip(read, SHIPPED[name], strict=True):
        assert (memory.source, memory.text) == (row["source"], row["text"])
        assert [question.form for question in memory.questions] == [question["form"] for question in row["questions"]]


def first(files):
    return files["choose.jsonl"][0]


def answer_not_in_text(files):
    for key in ("questions", "other_words"):
        first(files)[key][0]["answers"] = ["Atlantis"]


def answer_within_a_longer_word(files):
    first(files)["text"] += " Zebedee."
    for key in ("questions", "other_words"):
        first(files)[key][0]["answers"] = ["Zebed"]


def answer_in_question(files):
    row = first(files)["other_words"][0]
    row["question"] = f"{row['question']} At {row['answers'][0].upper()}?"


def other_answers(files):
    first(files)["other_words"][0]["answers"] = first(files)["questions"][1]["answers"]


def other_form(files):
    first(files)["other_words"][0]["form"] = "two_sentences"


def same_words(files):
    first(files)["other_words"][0]["question"] = first(files)["questions"][0]["question"].replace("?", ", please?")


def no_twin(files):
    first(files)["other_words"].pop()


def repeated_question(files):
    files["measure.jsonl"][0]["questions"][0]["question"] = first(files)["questions"][0]["question"]


def repeated_id(files):
    files["measure.jsonl"][0]["id"] = first(files)["id"]


def repeated_title(files):
    files["measure.jsonl"][0]["source"] = first(files)["source"].upper()


def title_of_common_words(files):
    first(files)["source"] = "Public notice"


def short_text(files):
    row = first(files)
    row["text"] = " ".join(answer for question in row["questions"] for answer in question["answers"])


def long_text(files):
    first(files)["text"] += " and so on" * 200


def few_questions(files):
    del first(files)["questions"][2:], first(files)["other_words"][2:]


def many_questions(files):
    for key in ("questions", "other_words"):
        first(files)[key] *= 2


def unnamed_question(files):
    first(files)["questions"][0]["question"] = "Where will they be replaced?"


def shared_name(files):
    for name in ("choose.jsonl", "second_night.jsonl"):
        files[name][0]["text"] += " Signed: Xanthippe."


def note(files):
    return files["notes_choose.jsonl"][0]


def name_of_another_set(files):
    note(files)["text"] += " It is a short walk from there to Skerrow."


def long_note(files):
    note(files)["text"] += " and so on" * 20


def note_of_many_sentences(files):
    note(files)["text"] += " It is not very far." * 3


def note_with_a_long_answer(files):
    for key in ("questions", "other_words"):
        note(files)[key][2]["answers"] = ["the stepping stones behind the brewery"]


def note_to_combine(files):
    for key in ("questions", "other_words"):
        note(files)[key][0]["form"] = "two_sentences"


def few_questions_about_a_note(files):
    del note(files)["questions"][3:], note(files)["other_words"][3:]


def kind_of_one_file_of_notes(files):
    note(files)["kind"] = "sermon"


def missing_text(files):
    del first(files)["text"]


def no_answers(files):
    first(files)["questions"][0]["answers"] = []


def unknown_form(files):
    first(files)["questions"][0]["form"] = "hard"


def too_many_documents(files):
    files["choose.jsonl"].append(files["measure.jsonl"].pop())


def too_few_documents(files):
    del files["second_night.jsonl"][11:]


def kind_of_one_file(files):
    first(files)["kind"] = "sermon"


def lengths_apart(files):
    for row in files["choose.jsonl"]:
        row["text"] += " And so it goes on from here." * 5


def only_plain(files):
    for row in files["measure.jsonl"]:
        for question in row["questions"] + row["other_words"]:
            question["form"] = "plain"


FAULTS = {
    answer_not_in_text: "the answer 'Atlantis' does not stand in the text",
    answer_within_a_longer_word: "the answer 'Zebed' does not stand in the text",
    answer_in_question: "stands in the question",
    other_answers: "different answers or another form",
    other_form: "different answers or another form",
    same_words: "of the words; allowed are 40%",
    no_twin: "in other words",
    repeated_question: "the question 'where will the drive chains of the skerrow ferry be replaced?' stands 2 times",
    repeated_id: "the id 'notice-ferry' stands 2 times",
    repeated_title: "the title 'skerrow ferry: winter timetable and closure' stands 2 times",
    title_of_common_words: "the title has no word of its own",
    short_text: "words; allowed are 40 to 600",
    long_text: "words; allowed are 40 to 600",
    few_questions: "2 questions; allowed are 3 to 6",
    many_questions: "questions; allowed are 3 to 6",
    unnamed_question: "`questions` 1 has no word that only its text has",
    shared_name: "the name 'Xanthippe' stands in several documents",
    name_of_another_set: "the name 'Skerrow' stands in several documents: choose.jsonl, notice-ferry, notes_",
    long_note: "words; allowed are 35 to 90",
    note_of_many_sentences: "7 sentences; allowed are 3 to 6",
    note_with_a_long_answer: "the answer 'the stepping stones behind the brewery' is longer than 4 words",
    note_to_combine: "has the form 'two_sentences'; allowed are plain",
    few_questions_about_a_note: "3 questions; allowed are 4 to 4",
    kind_of_one_file_of_notes: "only one of notes_choose.jsonl and notes_measure.jsonl has the kinds notice, sermon",
    missing_text: "`text` is missing or empty",
    no_answers: "`questions` 1 lacks a question or an answer",
    unknown_form: "has the form 'hard'; allowed are plain, two_sentences",
    too_many_documents: "choose.jsonl: 21 documents; allowed are 20 to 20",
    too_few_documents: "second_night.jsonl: 11 documents",
    kind_of_one_file: "has the kinds notice, sermon",
    lengths_apart: "are too far apart",
    only_plain: "measure.jsonl: only 0 of",
}


@pytest.mark.parametrize("plant", FAULTS, ids=lambda plant: plant.__name__)
def test_a_planted_fault_is_found(files, plant):
    plant(files)
    found = check.problems(files)
    assert any(FAULTS[plant] in problem for problem in found), found


def test_overlap_leaves_out_names_and_function_words():
    assert check.overlap("Who runs the canteen at Orlin?", "By whom is the Orlin kitchen managed?") == 0
    # canteen is common; runs, opens, day are not
    assert check.overlap("Who runs the canteen at Orlin?", "Which day opens the Orlin canteen?") == 1 / 4


def test_sentences_are_cut_at_their_ends_and_at_ends_of_lines():
    text = "The lamp draws 1.8 A at night. It holds 2 l.\n| Mon | 12 | SW | slight |\nYes.\n5 crowns are due today!"
    assert check.sentences(text) == [
        "The lamp draws 1.8 A at night.",
        "It holds 2 l.",
        "| Mon | 12 | SW | slight |",
        "5 crowns are due today!",
    ]


def write(files, folder):
    for name, rows in files.items():
        lines = [check.json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
        (folder / name).write_text("".join(lines), encoding="utf-8")


def test_the_script_prints_tables_or_problems(files, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["check.py", "--folder", str(tmp_path)])
    write(files, tmp_path)
    assert check.main() == 0
    printed = capsys.readouterr()
    assert "choose.jsonl" in printed.out and not printed.err
    repeated_id(files)
    write(files, tmp_path)
    assert check.main() == 1
    printed = capsys.readouterr()
    assert "1 problem:\nthe id 'notice-ferry' stands 2 times" in printed.err and not printed.out
