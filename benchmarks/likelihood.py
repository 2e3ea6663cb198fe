"""Evaluation beside lm-evaluation-harness: `python benchmarks/likelihood.py --lm-eval-python PATH [--items 40] [--repeats 3]`.

The built-in model of 1.8 million parameters, float32. MMLU's shape: log-likelihood of four letters after five examples, several subjects.
GSM8K's shape: five examples in a chat, greedy answers of up to 64 tokens that end before "Question:". The texts are made of random words
and are the same for both. Ours is the way of an `evaluate` stage: Ray Serve, HTTP and the client, with one request an item. The harness runs
its `hf` model in its own process, at that batch size of `--batches` which is best in the first turn. Prompts, replies and scores are compared
item by item.

Both are held to the same processors, take turns, and do a few items first, so that neither pays for what libraries set up once. Time is the
processor's, of all processes together, Ray's included, as other work may share the machine; the clock's is shown. Loading a model is in
neither. Writes `benchmarks/results/likelihood.json` and `.md`. Exit code 1 if a claim does not hold.

The harness has an environment of its own: `python -m venv VENV; VENV/bin/pip install "lm_eval[hf]"`, and `--lm-eval-python VENV/bin/python`.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from side_by_side import judge, machine, ratio

SUBJECTS = ["anatomy", "astronomy", "marketing", "philosophy"]
LETTERS = "ABCD"
SHOTS = 5
ANSWER_TOKENS = 64
STOP = "Question:"
CONCURRENCY = 64
LEAST = 1.5
TOLERANCE = 1e-3
TASKS = {"mmlu": "MMLU's shape, likelihoods", "gsm8k": "GSM8K's shape, answers"}
OURS, THEIRS = "plumbline", "lm_eval"
WORDS = """
water light energy cell market price river stone plant animal number letter city law people food heat force time year small large warm cold green
north first second better because while between above under which often never their than from with about after before into
"""


def make_data(folder: Path, items: int) -> None:
    """The same questions as files of both tools, and the harness's tasks."""
    draw, words = random.Random(1), WORDS.split()

    def text(least: int, most: int) -> str:
        return " ".join(draw.choice(words) for _ in range(draw.randint(least, most)))

    for split in ("dev", "test"):
        (folder / "mmlu" / split).mkdir(parents=True)
        for subject in SUBJECTS:
            rows = [
                {"question": text(12, 35), "choices": [text(2, 6) for _ in LETTERS], "answer": draw.randrange(4)}
                for _ in range(SHOTS if split == "dev" else items)
            ]
            with (folder / "mmlu" / split / f"{subject}_{split}.csv").open("w", newline="", encoding="utf-8") as stream:
                csv.writer(stream).writerows([row["question"], *row["choices"], LETTERS[row["answer"]]] for row in rows)
            _write_lines(folder / f"{subject}_{split}.jsonl", rows)
    for split, number in (("dev", SHOTS), ("test", items)):
        rows = []
        for _ in range(number):
            one, other = draw.randint(2, 90), draw.randint(2, 90)
            answer = f"{text(4, 9)} {one} + {other} = {one + other}.\n{text(3, 7)}.\n#### {one + other}"
            rows.append({"question": f"{text(15, 30)} {one} {text(3, 8)} {other}?", "answer": answer})
        _write_lines(folder / f"gsm8k_{split}.jsonl", rows)
    (folder / "tasks").mkdir()
    for subject in SUBJECTS:
        _write_task(
            folder,
            f"shaped_{subject}",
            subject,
            f"""
output_type: multiple_choice
description: "The following are multiple choice questions (with answers) about {subject}.\\n\\n"
doc_to_text: "{{{{question.strip()}}}}\\nA. {{{{choices[0]}}}}\\nB. {{{{choices[1]}}}}\\nC. {{{{choices[2]}}}}\\nD. {{{{choices[3]}}}}\\nAnswer:"
doc_to_choice: ["A", "B", "C", "D"]
doc_to_target: answer
metric_list:
  - metric: acc
""",
        )
    _write_task(
        folder,
        "shaped_gsm8k",
        "gsm8k",
        f'''
output_type: generate_until
doc_to_text: "Question: {{{{question}}}}\\nAnswer:"
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{until: ["{STOP}"], do_sample: false, temperature: 0.0, max_gen_toks: {ANSWER_TOKENS}}}
filter_list:
  - name: strict
    filter:
      - {{function: regex, regex_pattern: "#### (\\\\-?[0-9\\\\.\\\\,]+)"}}
      - {{function: take_first}}
  - name: flexible
    filter:
      - {{function: regex, group_select: -1, regex_pattern: "(-?[$0-9.,]{{2,}})|(-?[0-9]+)"}}
      - {{function: take_first}}
metric_list:
  - {{metric: exact_match, ignore_case: true, ignore_punctuation: false, regexes_to_ignore: [",", "\\\\$", "(?s).*#### ", "\\\\.$"]}}
''',
    )


def _write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _write_task(folder: Path, name: str, data: str, rest: str) -> None:
    files = {split: str(folder / f"{data}_{split}.jsonl") for split in ("dev", "test")}
    text = f"task: {name}\ndataset_path: json\ndataset_kwargs: {{data_files: {json.dumps(files)}}}\ntest_split: test\nfewshot_split: dev\n"
    text += f"num_fewshot: {SHOTS}\nfewshot_config: {{sampler: first_n}}\n{rest.strip()}\n"
    (folder / "tasks" / f"{name}.yaml").write_text(text, encoding="utf-8")


def _processor_seconds() -> float:
    """Of this process and all that it has started."""
    import psutil

    total = 0.0
    for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
        try:
            times = process.cpu_times()
        except psutil.Error:
            continue
        total += times.user + times.system
    return total


def _timed(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What the work found, with its seconds."""
    clock, processor = time.perf_counter(), _processor_seconds()
    found = work()
    return {"items": found, "processor": _processor_seconds() - processor, "clock": time.perf_counter() - clock}


def ours(folder: Path, processors: int) -> dict[str, Any]:
    """For each task: seconds, and by question the reply and the scores."""
    from plumbline.api.stages.evaluate import TaskSpec
    from plumbline.evaluation.benchmarks import gsm8k, mmlu
    from plumbline.evaluation.benchmarks.benchmark import likelihoods
    from plumbline.evaluation.client import Question, Sampling, ask
    from plumbline.evaluation.journal import Journal
    from plumbline.models.reference import ModelReference
    from plumbline.ray_environment import start_local
    from plumbline.serving.chat import ServedModel
    from plumbline.serving.local import deployment

    tasks = {
        "mmlu": TaskSpec(name="mmlu", benchmark="mmlu", uri=str(folder / "mmlu/test"), examples=str(folder / "mmlu/dev")),
        "gsm8k": TaskSpec(
            name="gsm8k", benchmark="gsm8k", uri=str(folder / "gsm8k_test.jsonl"), examples=str(folder / "gsm8k_dev.jsonl")
        ),
    }
    model = ServedModel("tiny", ModelReference(_model_folder()), ANSWER_TOKENS)

    def run(task: str, url: str, limit: int | None = None) -> dict[str, Any]:
        benchmark = {"mmlu": mmlu, "gsm8k": gsm8k}[task]
        items = benchmark.load(tasks[task])[:limit]
        drawing = Sampling(0.0, ANSWER_TOKENS, 0, (STOP,))
        questions = [Question("tiny", "f", item.prompt, drawing, item.choices) for item in items]
        with Journal(tempfile.mkdtemp(dir=folder)) as journal:
            replies = ask(url, questions, concurrency=CONCURRENCY, journal=journal)
        found = {}
        for item, reply in zip(items, replies, strict=True):
            score = benchmark.score(reply.text, item)
            if task == "mmlu":
                found[item.prompt[0]["content"]] = {"likelihoods": likelihoods(reply.text), "scores": [score.value]}
            else:
                scores = [score.variants["strict"], score.value]
                found[item.prompt[0]["content"]] = {"text": reply.text, "scores": scores}
        return found

    start_local(processors + 1)
    with deployment([model], application="likelihood", port=None, replicas=1, max_ongoing_requests=CONCURRENCY) as url:
        for task in TASKS:
            run(task, url, limit=4)
        return {task: _timed(lambda task=task: run(task, url)) for task in TASKS}


def theirs(folder: Path, model: str, processors: int, batches: dict[str, list[int]]) -> dict[str, Any]:
    """The same of the harness, for each batch size of each task. Runs in its environment, without plumbline."""
    os.environ |= {
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "HF_HOME": str(folder / "cache"),
        "TOKENIZERS_PARALLELISM": "true",
    }
    import torch
    from lm_eval import evaluator
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager, get_task_dict

    torch.set_num_threads(processors)
    manager = TaskManager(include_path=str(folder / "tasks"), include_defaults=False)
    names = {"mmlu": [f"shaped_{subject}" for subject in SUBJECTS], "gsm8k": ["shaped_gsm8k"]}

    def run(task: str, size: int, limit: int | None = None) -> dict[str, Any]:
        loaded[size]._batch_size = size
        chat = task == "gsm8k"
        result = evaluator.evaluate(
            lm=loaded[size], task_dict=dicts[task], limit=limit, bootstrap_iters=0, log_samples=True, apply_chat_template=chat,
            fewshot_as_multiturn=False,
        )  # fmt: skip
        found: dict[str, Any] = {}
        for samples in result["samples"].values():
            for sample in samples:
                context = sample["arguments"][0][0]
                if task == "mmlu":
                    values = [float(resp[0][0]) for resp in sample["resps"]]
                    found[context] = {"likelihoods": values, "scores": [sample["acc"]]}
                else:
                    entry = found.setdefault(context, {"text": sample["resps"][0][0], "scores": [0.0, 0.0]})
                    entry["scores"][["strict", "flexible"].index(sample["filter"])] = sample["exact_match"]
        return found

    loaded = {
        size: HFLM(pretrained=model, dtype="float32", device="cpu", batch_size=size)
        for size in sorted({size for sizes in batches.values() for size in sizes})
    }
    dicts = {task: get_task_dict(names[task], manager) for task in TASKS}
    for task in TASKS:
        run(task, batches[task][0], limit=2)
    return {
        task: {str(size): _timed(lambda task=task, size=size: run(task, size)) for size in batches[task]} for task in TASKS
    }


def _model_folder() -> str:
    from plumbline.external import tiny_folder

    return str(tiny_folder())


def _child(python: str, *arguments: str) -> dict[str, Any]:
    """What this file finds in a process of its own.

    Raises:
        SystemExit: it failed; with the end of what it said.
    """
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), arguments[arguments.index("--processors") + 1])
    done = subprocess.run(
        [python, __file__, *arguments], capture_output=True, text=True, check=False, env={**os.environ, **threads}
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)} failed ({done.returncode}):\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lm-eval-python", help="the Python of an environment with lm_eval")
    parser.add_argument("--items", type=int, default=40, help="of each subject, and of the chats")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--processors", type=int, default=1, help="that each tool may use")
    parser.add_argument(
        "--batches", type=int, nargs="+", default=[4, 16, 64], help="batch sizes of the harness to choose from"
    )
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        tool, folder, *rest = options.child
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.processors])
        if tool == OURS:
            found = ours(Path(folder), options.processors)
        else:
            found = theirs(Path(folder), rest[0], options.processors, json.loads(rest[1]))
        print("\n" + json.dumps(found))
        return 0
    if not options.lm_eval_python:
        parser.error("give --lm-eval-python, the Python of an environment with lm_eval")

    runs: dict[str, dict[str, list[dict[str, Any]]]] = {task: {OURS: [], THEIRS: []} for task in TASKS}
    best: dict[str, list[int]] = dict.fromkeys(TASKS, options.batches)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make_data(folder, options.items)
        common = ("--processors", str(options.processors), "--child")
        for _ in range(options.repeats):
            mine = _child(sys.executable, *common, OURS, str(folder))
            other = _child(options.lm_eval_python, *common, THEIRS, str(folder), _model_folder(), json.dumps(best))
            for task in TASKS:
                size, found = min(other[task].items(), key=lambda pair: pair[1]["processor"])
                best = best | {task: [int(size)]}
                runs[task][OURS].append(mine[task])
                runs[task][THEIRS].append(found)
                seconds = {tool: round(runs[task][tool][-1]["processor"], 2) for tool in (OURS, THEIRS)}
                print(task, f"batch {size}", seconds, flush=True)

    table, claims = [], []
    for task, what in TASKS.items():
        for tool, found in runs[task].items():
            number = len(found[0]["items"])
            rates = {k: round(number / statistics.median(one[k] for one in found), 1) for k in ("processor", "clock")}
            name = tool if tool == OURS else f"{tool}, batch {best[task][0]}"
            table.append({"task": what, "tool": name, "items": number, **rates})
        claims += _claims(task, what, runs[task])
    here = machine()
    head = (
        f"Evaluation beside lm-evaluation-harness\n\n{options.processors} processor(s) each, float32, medians of {options.repeats} turns; "
        f"{here}"
    )
    columns = ("task", "tool", "items", "items per processor second", "items per second")
    return judge("likelihood", head, columns, table, claims, machine=here)


def _claims(task: str, what: str, found: dict[str, list[dict[str, Any]]]) -> list[tuple[bool, str]]:
    """The throughput, and that the replies and scores are the same."""
    seconds = {kind: [[one[kind] for one in found[tool]] for tool in (THEIRS, OURS)] for kind in ("processor", "clock")}
    times, spread = ratio(*seconds["processor"])
    by_clock, _ = ratio(*seconds["clock"])
    fast = f"{what}: {times:.2f} ({spread}) times the harness's items a processor second, {by_clock:.2f} by the clock (at least {LEAST})"
    mine, other = found[OURS][0]["items"], found[THEIRS][0]["items"]
    if task == "gsm8k":
        mine, other = ({_question(prompt): value for prompt, value in side.items()} for side in (mine, other))
    same = mine.keys() == other.keys()
    pairs = [(mine[key], other[key]) for key in mine.keys() & other.keys()]
    equal = sum(one["scores"] == two["scores"] for one, two in pairs)
    claims = [
        (times >= LEAST, fast),
        (same and equal == len(mine), f"{what}: {equal} of {len(mine)} items have the harness's prompt and scores"),
    ]
    if task == "mmlu":
        gap = max(
            (abs(a - b) for one, two in pairs for a, b in zip(one["likelihoods"], two["likelihoods"], strict=True)),
            default=0.0,
        )
        claims.append((gap <= TOLERANCE, f"{what}: log-likelihoods differ by at most {gap:.2g} (allowed {TOLERANCE})"))
    else:
        texts = sum(one["text"] == two["text"] for one, two in pairs)
        claims.append((texts == len(mine), f"{what}: {texts} of {len(mine)} answers are the same text"))
    return claims


def _question(prompt: str) -> str:
    """The last question of a few-shot prompt, which the harness shows as its chat is written out."""
    return prompt.rsplit("Question: ", 1)[1].split("\nAnswer:")[0]


if __name__ == "__main__":
    sys.exit(main())
