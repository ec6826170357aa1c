"""The words of the project: every text has a subject, and no sentence is too long to follow."""

from __future__ import annotations

import pytest

from tests import words

CODE = '''
def send(update):
    """{first}

    {paragraph}

    Args:
        update: {entry}

    Raises:
        ValueError: {raises}
    """
    raise ValueError(f"{message}")


rate: float = setting(0.1, "{setting}", "(0, 1]")
'''
GOOD = {
    "first": "Sends an update to the server.",
    "paragraph": "The update has the tensors of one round.",
    "entry": "The tensors by name.",
    "raises": "If the update is empty.",
    "message": "{update}: expected a tensor, e.g. zeros; name one",
    "setting": "The learning rate of the clients.",
}
PAGE = "# Title\n\n{first}\n\n* {item}\n\n| what | why |\n|---|---|\n| a | {cell} |\n"
GOOD_PAGE = {"first": "One sentence.", "item": "Of three rows one is new.", "cell": "It is new."}
LONG = "This is " + " ".join(["very"] * words.MOST_WORDS) + " long."


def code_faults(**changed: str) -> list[str]:
    source = CODE.format(**GOOD | changed)
    return words.faults(words.texts_of_code("a.py", source))


def page_faults(**changed: str) -> list[str]:
    return words.faults(words.texts_of_page("a.md", PAGE.format(**GOOD_PAGE | changed)))


def test_whole_sentences_have_no_fault():
    assert code_faults() == []
    assert page_faults() == []


@pytest.mark.parametrize(
    ("place", "text"),
    [
        ("first", "Tells the server about an update."),
        ("first", "Of an update, the tensors."),
        ("first", "As the server asks."),
        ("paragraph", "The same, for every client."),
        ("paragraph", "An update is sent. Who sends two is refused."),
        ("entry", "Of one round."),
        ("entry", "As for `receive`."),
        ("entry", "The same as for `receive`."),
        ("raises", "The update is empty."),
        ("message", "Who sent {update}"),
        ("setting", "Of SGD."),
        *((place, LONG) for place in ("paragraph", "entry", "message", "setting")),
    ],
)
def test_a_fault_in_code_is_found_and_no_other(place: str, text: str):
    (fault,) = code_faults(**{place: text})
    assert fault.startswith("a.py:")


@pytest.mark.parametrize(
    ("place", "text", "line"),
    [
        ("first", "Who has the key can read it.", 3),
        ("item", "The key is lost. Tells what to do.", 5),
        ("cell", "The same.", 9),
        ("first", LONG, 3),
    ],
)
def test_a_fault_on_a_page_is_found_with_its_line(place: str, text: str, line: int):
    (fault,) = page_faults(**{place: text})
    assert fault.startswith(f"a.md:{line}: ")


def test_a_heading_a_question_and_code_are_no_sentences_without_a_subject():
    assert page_faults(first="## Who sees what") == []
    assert page_faults(first="Who sees what?") == []
    assert page_faults(first="```\nWho of them\n```") == []
    assert page_faults(first="`" + "a, " * words.MOST_WORDS + "` is a list.") == []


def test_the_texts_of_this_project_have_no_fault():
    found = list(words.texts())
    kinds = {text.kind for text in found}
    assert kinds == {"first line", "entry", "raises", "setting", "text", "heading"}
    assert len(found) > 5000
    assert words.faults(found) == []
