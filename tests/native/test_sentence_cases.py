"""Where the sentences of whole texts end, worked out by hand."""

from types import ModuleType

import pytest
from helpers.ragged import flat, spans_of

# Worked out by hand; "|" separates the spans, or "¦" where a case has a "|" of its own.
CASES = [
    "",
    " ",
    " \n\t ",
    "cat",
    "A cat",
    "A cat. |A dog.",
    "A cat! |A dog? |A bird.",
    "A cat?! |A dog.",
    "A cat.A dog.",
    "  A cat.  |A dog. ",
    "The cat is 3.5 m long. |The dog is not.",
    "Pay $3.50. |Then go.",
    "See example.com for more. |Use node.js, or so.",
    "It is at example.com. |Go.",
    "Mr. Smith met Mrs. Jones. |Dr. Who left.",
    "Prof. Oak and St. Bernard, on Mt. Fuji.",
    "Cats vs. dogs, cf. Fig. 3 and eq. 4. |Done.",
    "A fruit, e.g. an apple. |That is, i.e. this.",
    "About approx. five.",
    "The U.S. Army in the U.K. and a Ph.D. student. |Ok.",
    "It is 5 p.m. now. |It is 5 p.m. |Now.",
    "It is 5 a.m.",
    "Cats, dogs, etc. are here. |Cats, dogs, etc. |They sleep.",
    "Apple Inc. is big. |He works at Apple Inc. |She does not.",
    "Sammy Davis Jr. sang. |Then Sammy Davis Jr. |He left.",
    "J. Smith and J. R. R. Tolkien. |So do I. |You too.",
    "No. |It is not.",
    "Wait... what? |Wait... |What?",
    "Wait… what? |Wait… |What?",
    "Well.. |Yes.",
    "Hmm... |5 cats.",
    "Wait...what.",
    'He said "Stop." |Then he left.',
    "He said 'Stop!' |Then (he left.) |Then [he came.] |Ok.",
    'The sign says "Stop!" in red. |It says "Go." |It is green.',
    "A dog (is it a dog?) and a cat (it is one.) |Done. |**Bold.** and *thin.*",
    "“Stop.” |‘Go.’ |«Non.» |Ok.",
    "**A bold cat.** |_An italic dog._ |Done.",
    "It ends.), or not. |Yes.",
    "Stop.- no. |Stop.; no.",
    "A cat.\n|A dog.",
    "A cat\n|A dog",
    "A cat\r\n|A dog",
    "A cat \n\n  |A dog",
    "a\u2028|b\u2029|c\x85|d\x0b|e\x0c|f",
    "1. The cat\n|2. The dog. |3 birds.",
    "1. The cat.\n|12. The dog.\n|123. The bird.",
    "a. The cat\n|B. The dog\n|A) The bird. |End.",
    " - 1. The cat\n|**2. The dog.** |End.",
    "We have two. |2. They are.",  # a number that begins a sentence is a list mark
    "It was 2020. |Then 2021.",
    "2020. |It was.",
    "Mr.\n|Smith",
    "It is Mr.",
    "U.S.\n|Army",
    "你好。|世界！|好吗？|好",
    "他说：「好。」|然后走了。 |好",
    "３．|５",
    "漢字.漢字。",
    "Ça va. |Élan. |Ω. |ж.",
    "Он ушёл... но вернулся. |Он ушёл... |Но нет.",
    "...",
    "... |Yes",
    ". |. |.",
    "?",
    "Yes",
    "A cat.\u00a0|A dog.\u3000|End",
    "😀. |😀! |ok",
    "x = 3. |y = 4.",
    "(See above). |Then.",
    "Plan I. |Go.",
    # Stops of other scripts.
    "इस तस्वीर में एक कुत्ता है। |वह घास पर बैठा है। |आसमान नीला है॥ |ठीक",
    "একটি কুকুর আছে।|একটি বিড়াল।",
    "تصویر میں ایک کتا ہے۔ |کیا یہ سرخ ہے؟ |جی ہاں۔",
    "هل يوجد كلب؟ |نعم، يوجد كلب. |القط نائم! |لا",
    "هل هذا كلب؟، قال الرجل. |نعم؛ هو كلب؟",
    "ውሻ አለ። |ተቀምጧል፧ |አዎ።",
    "Սա շուն է։ |Նա նստած է։",
    "ဒါခွေး။ |ဒါကြောင်။",
    "មានឆ្កែមួយ។ |វាអង្គុយ៕ |ចាស",
    "ᠨᠣᠬᠠᠢ᠃ |ᠮᠤᠤᠷ᠉",
    "有一只狗。|它在草地上！|是吗？｡|好．|好",
    "他问「好吗？」，然后走了。|好",
    "A cat.。|B ?！|C",
    "What‼ |What⁇ |what⁈ |What⁉ |Really‽ |Yes⸮ |No",
    "what‼no ⁉, no",
    # Invisible characters.
    "A cat.\u200b |A dog.\u200f\u2069 |A bird!\ufeff\n|End",
    "A cat. \u200b |A dog.\u00a0\u2060\n|End",
    "نعم.\u200f |لا؟\u200f|نعم",
    "Stop!\ufe0f |Stop‼\ufe0f |In red",
    "It says Stop!\u200b |in red.",
    'It says "Stop!\u200b" in red.',
    "M\u00adr.\u200b Smith and Dr\u200b. Who, e.\u2060g. a cat.",
    "U.\u200bS.\u200b Army",
    "5 p.m.\u200b now. |5 p.m. \u200b|Now.",
    "\u200b\ufeff1\u200b. The cat.\n\u2067|- \u200b2. The dog.",
    "There are: \u200b1.\u200b The cat.",
    "\u200b",
    " \u200b A cat.",
    # Numbers.
    "No. 7 is running. |She wears (No. 15). |Then nos. 3 and 4, Nr. 5 and NO. 6.",
    "No. 5 is alive. |No. |It is not. |No.",
    "No.7 is it. |He said no. |Five came.",
    "No. #7 is red, No.\u200b 8 and No. <b>9</b> too.",
    "No.\n|7 cats",
    "See Art. 5, Sec. 2, sec. 3, Ch. 4, ch. 5 and p. 6.",
    "It was in Jan. |The cat came on Jan. 5. |Feb. 3, Sept. 12 and Dec. 31 follow.",
    "In Aug. |Then Oct. |Then Nov. 1.",
    '**No.** 7 is "Nr." 8. |"No." |It.',
    "Pt. 2 of it, Est. 1920, Tel. 555 and Hwy. 66. |The hwy. |Ends.",
    "Take p. |Then q.",
    # Abbreviations.
    "El Sr. García, la Sra. López y la Srta. Ruiz. |La Dra. Paz.",
    "It is 5 ft. tall and 3 in. wide. |It is 6 ft. |It weighs 2 lbs. |The oz. are few.",
    "Fifth Ave. is long. |She lives on Fifth Ave. |The Blvd. is wide. |Apt. 5 is empty.",
    "It took 2 hrs. and 5 min. |He ran 10 km. |Then 3 mi. more.",
    "About 90 sq. Meters. |Cpl. Jones and Maj. Tom.",
    # List marks.
    "1. A cat. |2. A dog. |a. A bird. |I. The end.",
    "| 1. | A cat |¦",
    "| 1. | A cat | 2. | A dog |\n¦| 3 | A bird",
    "• 1. The cat.\n|– 2. The dog.\n|[3. The bird]\n|+ a. The end\n|◦ B. So\n|‣ 12. So\n|· 123. So",
    "x 1. |The cat.\n|- 1234. |The dog.",
    "There are: 1. A cat, 2. A dog; 3. A bird (4. A fish).",
    "Choose: a. The cat, b. The dog.",
    "有：1. 猫，2. 狗、3. 鸟。|好",
    "Objects: 1. Cat 2. Dog 3. Bird 5. |Fish",
    "Objects: 9. Cat 10. Dog 10. |Fish",
    "We saw 1. |They saw 2. |So.",
    "It was 10:30. |Then 1,000. |Then 5;6. |Then (7. Then).",
    "**1.** The cat. |*2.* The dog.",
    "1.1. The cat. |1.2. The dog. |12.3.4. The bird.",
    "It is 1.1. |The cat.",  # where no sentence begins it is a number
    "i. cat\n|ii. dog\n|iv. bird",
    "II. The dog. |XIV. The bird. |VI is one.",
    "He is Louis XIV. |The king.",
    "mix. |The dog.",
    "5 ft. 3 in. tall. |It weighs 2 lbs. 3 oz. or so.",
    "| 1. | Cat. | A dog! |\n¦| 2. | Bird. |\n¦Then. ¦It ends.",
    "| No. | Name? |\n|---|---|\n¦| 1. | 猫。| 犬。|\n",
    "A cat. ¦| A dog.",
    "Here:\n```python\n|x = 1\n```\n|Done. \n---\n***\n|Two.\n===",
    "A cat.\n- - -\n|--\n|A dog. ~~~",
    "--- A cat. |# ## A.",
    '"1. |The cat."',
    # Markup.
    "<think>\nThe image shows a red car. |There is a dog.\n</think>\n\n|There is a red car.",
    "<answer>Yes.</answer>",
    "<answer>Yes</answer> ",
    "A cat.</p><p>|A dog.<br>|A bird.<br/>|End",
    "A <b>red</b> car, a <b>Red.</b> |Car <i>etc.</i> and <i>Mr.</i> Smith.",
    "Wait...<b> what</b>? |Wait...<b> |What</b>?",
    "<|begin_of_thought|>A cat.<|end_of_thought|> <|x|>\n¦A dog.",
    "◁think▷A cat.◁/think▷|A dog.◁ A bird. |◁think End.",
    "[THINK]A cat.[/THINK]|A dog.[think] A bird.[INST] End.",
    "5 < 6. |a<b.c> A < b. |I <3 you. |<5> no.<5 <",
    "A cat.<",
    "A cat.<thi",
    "A cat.<a\n|b>",
    "A cat.<a<b>c",
    "A cat.<a" + 64 * "x" + ">|A dog.<a" + 65 * "x" + "> B.",
    "A cat.<é> A cat.</ b> A cat.<//b> A.",
    'A <a href="x. Y">link</a>. |End.',
    "A cat <b>\n</b>|A dog",
    "是。<b></b>|否。|是<br>\n<br>|是",
    "<think></think>",
    "<think>\u200b \n </think>\nYes",
]


ABBREVIATIONS = (
    "Mr Mrs Ms Mx Dr Prof St Mt Ft Gen Col Capt Lt Sgt Cpl Pvt Maj Adm Rev Hon Sen Rep Gov Messrs Mme Mlle "
    "Sr Sra Srta Dra Sres vs cf approx ca viz resp fig figs Fig Figs eq eqs Eq Eqs vol Vol pp sq"
)
OFTEN_LAST = (
    "etc Inc inc Ltd ltd Co Corp corp Bros Jr al a.m p.m A.M P.M ft in lb lbs oz yd yds mi cm mm km kg tsp tbsp "
    "hr hrs min mins Ave Blvd Rd Ln Hwy Pkwy Apt Bldg Dept"
)
NUMBERED = (
    "No no NO Nos nos Nr nr Art Sec sec Ch ch p Pt pt Est est Tel tel Hwy Rte Apt Bldg "
    "Jan Feb Mar Apr Jun Jul Aug Sep Sept Oct Nov Dec"
)


@pytest.mark.parametrize("case", CASES)
def test_worked_cases(implementation: ModuleType, case: str) -> None:
    separator = "¦" if "¦" in case else "|"
    text = case.replace(separator, "")
    expected = [span.encode() for span in case.split(separator) if span]
    assert spans_of(implementation, text) == expected


@pytest.mark.parametrize("word", ABBREVIATIONS.split())
def test_no_sentence_ends_after_an_abbreviation(implementation: ModuleType, word: str) -> None:
    assert spans_of(implementation, f"It is {word}. Then more.") == [f"It is {word}. Then more.".encode()]


@pytest.mark.parametrize("word", OFTEN_LAST.split())
def test_the_next_letter_decides_after_some_abbreviations(implementation: ModuleType, word: str) -> None:
    assert spans_of(implementation, f"It is {word}. then more.") == [f"It is {word}. then more.".encode()]
    assert spans_of(implementation, f"It is {word}. Then more.") == [f"It is {word}. ".encode(), b"Then more."]


@pytest.mark.parametrize("word", NUMBERED.split())
def test_the_dot_before_a_number_is_no_stop(implementation: ModuleType, word: str) -> None:
    for number in ("7", " 7", " #7", "\u200b 0"):
        assert spans_of(implementation, f"It is {word}.{number} More.") == [f"It is {word}.{number} More.".encode()]
    assert spans_of(implementation, f"It is {word}. Then more.") == [f"It is {word}. ".encode(), b"Then more."]


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("Yes, it is.", "Yes"),
        ("yes it is.", "yes"),
        ("No.", "No"),
        (" \n no", "no"),
        ("No-one", "No"),
        ("Yes/no", "Yes"),
        ("No。", "No"),
        ("No“", "No"),
        ("NO.", ""),
        ("Not so.", ""),
        ("nothing", ""),
        ("Yes_", ""),
        ("yesé", ""),
        ("No猫", ""),
        ("No5", ""),
        ("(Yes)", ""),
        ("Ye", ""),
        ("N", ""),
        ("it is, yes", ""),
        ("No।", "No"),
        ("No؟", "No"),
        ("Yes،", "Yes"),
        ("\u200b\ufeff Yes, it is.", "Yes"),
        ("\u200fno\u200b", "no"),
        ("No\u00adbody", ""),
        ("No. 7 is it.", ""),
        ("no.7", ""),
        ("No 7", ""),
        ("No\u200b.\u200b #7", ""),
        ("no <b>7</b>", ""),
        ("No, 7", "No"),
        ("No.. 7", "No"),
        ("Yes. 7", "Yes"),
        ("Yes 7", "Yes"),
        ("<answer>Yes</answer>", "Yes"),
        ("<think>\n</think>\n no", "no"),
        ("[THINK]No", "No"),
        ("◁think▷ No.◁/think▷", "No"),
        ("<answer", ""),
        ("<think></think>", ""),
    ],
)
def test_leading_yes_or_no(implementation: ModuleType, text: str, word: str) -> None:
    content_end, _, begin, end, content_begin = implementation.split_sentences(*flat([text]))[0][0].tolist()
    assert text.encode()[max(begin, 0) : max(end, 0)].decode() == word
    assert (begin < 0) == (end < 0) == (not word)
    assert not word or begin == content_begin < end <= content_end


def test_yes_or_no_of_a_later_sentence(implementation: ModuleType) -> None:
    table, _ = implementation.split_sentences(*flat(["It is. \n No. Yes"]))
    assert table.tolist() == [[6, 9, -1, -1, 0], [12, 13, 9, 11, 9], [16, 16, 13, 16, 13]]


@pytest.mark.parametrize(
    ("before", "content", "after"),
    [
        ("", "A cat.", ""),
        (" \n", "A cat.", " \n"),
        ("\u200b", "A cat.\u200b", " \u200b"),
        ("<think>\n", "A cat", "\n</think>\n"),
        ("<a> </a>\u200e", "A <b>red</b> cat.", "<br>\u200e<br/>"),
        ("[THINK]◁x▷<|y|>", "<5", "<|z|>"),
        ("", "", " <b>\u200b</b>\n"),
    ],
)
def test_gaps_are_no_content(implementation: ModuleType, before: str, content: str, after: str) -> None:
    text = before + content + after
    (row,) = implementation.split_sentences(*flat([text]))[0].tolist()
    lengths = [len(part.encode()) for part in (before + content, text, before)]
    assert [row[0], row[1], row[4]] == lengths
