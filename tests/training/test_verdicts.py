"""What counts as the verdict of a judge, in answers written by hand."""

from __future__ import annotations

import pytest

from mmbdhs.training.annotators import parse_verdict


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("Response 1", 0),
        ("**Response 2**", 1),
        (" response\n2. ", 1),
        ("2", 1),
        ("'1.'", 0),
        ('"Response 1"!', 0),
        ("Answer: 2", 1),
        ("Final answer: Response 1.", 0),
        ("**Verdict:** Response 2", 1),
        ("The better response is Response 1.", 0),
        ("The better response is: 2", 1),
        ("Response 2 is better.", 1),
        # The last line outranks what was said before it.
        ("Response 1 names a dog that is not there. Response 2 does not.\n\n### Verdict: **Response 2**", 1),
        ("Response 1 says there is a dog.\nResponse 2 says there is none.\nResponse 1", 0),
        ("Response 1 is better in style.\n\n**Response 2**", 1),
        ("Response 2\n\nNo, it names a hat. Final answer:\nResponse 1\n```\n", 0),
        ("Response 1\nResponse 2 is worse.", None),
        ("Response 1\nResponse 1 or Response 2", None),
        ("Response 2\n\nIt does not mention a dog.", None),
        # A quotation is no verdict.
        ('The second one claims:\n"Response 1 is better."', None),
        ("It says\n“Response 2”", None),
        ("> Response 1", None),
        ("The image shows no dog.\n> Response 2 is better.", None),
        # Free prose decides nothing.
        ("response two.", None),
        ("Two", None),
        ("The first response is better.", None),
        ("Response 2 is better than Response 1.", None),
        ("Response 1 is better in style, but Response 2 is clearly the better one.", None),
        ("Response 2 because it does not mention a dog.", None),
        ("Response 2. It does not mention a dog, unlike Response 1.", None),
        ("I prefer response 1 to response 2.", None),
        ("The final answer is: 2", None),
        ("Answer: neither 1 nor 2", None),
        ("The better response is not 2", None),
        ("1 is better than 2", None),
        ("1 or 2", None),
        ("Better response: Response 1", None),
        ("Is it better: Response 1 or Response 2?", None),
        ("Response 1 is worse.", None),
        ("Response 2 is not better.", None),
        ("I do not prefer Response 1.", None),
        ("Neither Response 1 nor Response 2 is better.", None),
        ("Response 1 and Response 2 are equally good. Response 1", None),
        ("Do I prefer Response 1 or Response 2?", None),
        ("One response is better than the other.", None),
        ("There are 2 dogs.", None),
        ("Response 12 is better.", None),
        ("Response 12", None),
        ("12", None),
        ("", None),
    ],
)
def test_only_the_name_of_a_response_is_a_verdict(text: str, verdict: int | None) -> None:
    assert parse_verdict(text) == verdict


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("<think>\nResponse 1 names a dog.\n</think>\n\nResponse 2", 1),
        ("<think>\nIs it that Response 1 is better? No, it invents a dog.\n</think>\n\nResponse 2", 1),
        ("<think>At first sight Response 2 is more helpful, but it names a hat.</think>\nResponse 1", 0),
        ("<THINKING>Response 1</Thinking>2", 1),
        ("<thought>Response 2\n</thought> Response 1", 0),
        ("<reasoning>1</reasoning><reflection>1</reflection>\n**2**", 1),
        ("◁think▷Response 2◁/think▷Response 1", 0),
        ("[THINK]Response 1[/THINK]\nFinal answer: Response 2", 1),
        ("Response 2 <think>Or 1?</think>", 1),
        ("<think>a <think>Response 2</think> b</think> Response 1", 0),
        ("<think>one <reasoning>two</reasoning> Response 1 </think> Response 2", 1),
        # The template wrote the opening tag into the prompt.
        ("Response 1 is better? No.\n</think>\n\nResponse 2", 1),
        ("Response 2\n[/THINK]Response 1", 0),
        ("Response 2\n◁/think▷", None),
        ("<think>Response 2</think>", None),
        ("<think></think>", None),
        # The answer ends before the thought does.
        ("<think>Response 2", None),
        ("<think>So far:\nResponse 2", None),
        ("Response 1\n<thinking>Or rather\nResponse 2", None),
        ("<think>Response 1</think><think>\nResponse 2", None),
        ("<think><reasoning>It is true.</reasoning>\nResponse 2", None),
        ("[think]\nResponse 1", None),
        ("Hm.</think>Response 1 is shorter, Response 2 is true.", None),
    ],
)
def test_thoughts_are_no_verdict(text: str, verdict: int | None) -> None:
    assert parse_verdict(text) == verdict
    swapped = text.translate(str.maketrans("12", "21"))
    assert parse_verdict(swapped) == (None if verdict is None else 1 - verdict)
