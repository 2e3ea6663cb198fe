"""Tasks of lm-evaluation-harness in a folder, with their data beside them."""

from __future__ import annotations

import json
from pathlib import Path

ITEMS = 12
COLOURS = ["red", "green", "blue"]
TASKS = {
    "colours": """
output_type: multiple_choice
doc_to_text: "Question: {{question}}\\nAnswer:"
doc_to_choice: "{{choices}}"
doc_to_target: answer
num_fewshot: 1
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
  - {metric: acc_norm, aggregation: mean, higher_is_better: true}
""",
    "last": """
output_type: loglikelihood
doc_to_text: "{{question}}"
doc_to_target: " {{choices[answer]}}"
metric_list:
  - {metric: perplexity, aggregation: perplexity, higher_is_better: false}
  - {metric: acc, aggregation: mean, higher_is_better: true}
""",
    "sums": """
output_type: generate_until
doc_to_text: "Question: {{sum}}\\nAnswer:"
doc_to_target: "{{total}}"
num_fewshot: 2
generation_kwargs: {until: ["Question:", "a", "b", "c", "d"], do_sample: false, max_gen_toks: 16}
filter_list:
  - {name: strict, filter: [{function: regex, regex_pattern: "^ *([0-9]+)\\\\.?$"}, {function: take_first}]}
  - {name: flexible, filter: [{function: regex, group_select: -1, regex_pattern: "([0-9]+)"}, {function: take_first}]}
metric_list:
  - {metric: exact_match, aggregation: mean, higher_is_better: true}
""",
}


def write_tasks(folder: Path, whole_paths: bool = False) -> Path:
    """`colours` (likelihoods), `last` (greedy or not), `sums` (written) and the group `own` of the first two.

    Args:
        whole_paths: name data files so that the harness finds them by itself, too.
    """
    (folder / "data").mkdir(parents=True)
    for part, count in (("test", ITEMS), ("dev", 4)):
        rows = [
            {
                "question": f"{part} {i}: which colour has number {i * 7}?", "choices": COLOURS, "answer": i % 3,
                "sum": f"{i} + {i + 3}", "total": str(2 * i + 3),
            }
            for i in range(count)
        ]  # fmt: skip
        (folder / "data" / f"{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = f"{folder}/data" if whole_paths else "data"
    (folder / "_base").write_text(
        f"dataset_path: json\ntest_split: test\nfewshot_split: dev\ndataset_kwargs: {{data_files: {{test: {data}/test.jsonl, dev: {data}/dev.jsonl}}}}\n"
    )
    for name, rest in TASKS.items():
        (folder / f"{name}.yaml").write_text(f"include: _base\ntask: {name}\n{rest.strip()}\n")
    (folder / "own.yaml").write_text("group: own\ntask: [colours, last]\n")
    return folder
