"""A benchmark of your own: questions whose answer contains a word, scored with 95% intervals.

    python examples/evaluate.py aligned/final questions.jsonl scores

A line of questions.jsonl: {"id": "1", "image": "street.jpg", "question": "What stands here?", "word": "bus"}.
`mmbdhs evaluate` asks the published benchmarks, and `mmbdhs compare` compares the folders of two models.
"""

import sys
from pathlib import Path

from transformers import AutoModelForImageTextToText, AutoProcessor

from mmbdhs.data import read_jsonl
from mmbdhs.evaluation import Outcome, Question, Unjudged, evaluate


class Words(Unjudged):
    name, max_new_tokens = "words", 64

    def __init__(self, path):
        self.rows = read_jsonl(path)
        self.facts = {"rows": len(self.rows)}

    def questions(self):
        return [Question(row["id"], Path(row["image"]), row["question"]) for row in self.rows]

    def outcomes(self, answers, verdicts):
        found = {row["id"]: row["word"] in answers[row["id"]].lower() for row in self.rows}
        return [Outcome(row["id"], row["image"], (), {"found": (found[row["id"]], 1)}) for row in self.rows]


name, path, output_dir = sys.argv[1:]
model = AutoModelForImageTextToText.from_pretrained(name, dtype="auto", device_map="auto")
processor = AutoProcessor.from_pretrained(name)
print(evaluate(model, processor, Words(path), output_dir=output_dir))
