"""Answer a benchmark's questions greedily and score the answers, with 95% intervals.

    python examples/evaluate.py aligned pope data

docs/evaluation.md says which files data/pope needs. The benchmarks here need no judge.
"""

import sys
from pathlib import Path

from transformers import AutoModelForImageTextToText, AutoProcessor

from mmbdhs import SamplingConfig, sample_responses
from mmbdhs.evaluation import estimates, missing_images, read_benchmark

name, benchmark_name, data = sys.argv[1:]
benchmark = read_benchmark(benchmark_name, Path(data))
questions = benchmark.questions()
missing_images(questions)

model = AutoModelForImageTextToText.from_pretrained(name, dtype="auto", device_map="auto")
processor = AutoProcessor.from_pretrained(name)
images, texts = [str(one.image) for one in questions], [one.text for one in questions]
config = SamplingConfig(temperature=0, max_new_tokens=benchmark.max_new_tokens)
found = sample_responses(model, processor, images, texts, config, progress=True)

answers = {question.id: one[0].text for question, one in zip(questions, found)}
for group, metrics in estimates(benchmark.outcomes(answers, verdicts={})).items():
    print(f"{group}:", *(f"{metric} {value}" for metric, value in metrics.items()), sep="\n  ")
print(dict(benchmark.facts))
