"""Runs that the local reader and the API server must judge alike."""

from __future__ import annotations

from textwrap import indent

HEAD = """\
apiVersion: plumbline.dev/v1alpha1
kind: AlignmentRun
metadata: {name: contract}
spec:
  model: {base: "builtin://tiny"}
  workspace: {uri: /tmp/workspace}
"""

DATA = '- {name: data, curate: {sources: [{uri: "builtin://skills", limit: 100}]}}\n'
PAIRS = "- {name: pairs, curate: {sources: [{uri: pairs.jsonl, format: pairs}], produces: PreferenceDataset}}\n"
SFT = "- {name: sft, sft: {}}\n"
CHECK = "- {name: check, evaluate: {tasks: [{name: skills, benchmark: skills}], gates: [{task: skills, threshold: 0.5}]}}\n"
SERVE = "- {name: live, serve: {}}\n"


def stages(*texts: str) -> str:
    """A whole file with these stages."""
    return HEAD + "  stages:\n" + indent("".join(texts), "  ")


def evaluate(fields: str) -> str:
    """A file whose second stage is an evaluate block with these fields."""
    return stages(DATA, SFT, f"- {{name: check, evaluate: {{{fields}}}}}\n")


SKILLS = "{name: skills, benchmark: skills}"

GOOD = {
    "whole pipeline": stages(DATA, SFT, PAIRS, "- {name: dpo, preference: {}}\n", CHECK, SERVE),
    "curate": stages(DATA),
    "synthesize": stages(DATA, "- {name: more, synthesize: {distill: {}}}\n", SFT),
    "synthesize pairs": stages(
        DATA,
        "- {name: more, synthesize: {selfImprove: {judge: {}}, produces: PreferenceDataset}}\n",
        "- {name: dpo, preference: {}}\n",
    ),
    "synthesize without a dataset": stages("- {name: more, synthesize: {textbook: {topics: [tides]}}}\n", SFT),
    "extendTokenizer": stages("- {name: words, extendTokenizer: {texts: [a.txt]}}\n"),
    "early stopping and a judge": stages(
        DATA,
        "- {name: a, sft: {earlyStopping: {prompts: 32, maxDrift: 4.5}}}\n",
        "- {name: votes, curate: {produces: PreferenceDataset, form: rankings, sources: [{uri: v.json, format: pandalm}]}}\n",
        "- {name: judge, preference: {objective: judge}}\n",
    ),
    "rewardModel": stages(PAIRS, "- {name: rm, rewardModel: {maxSteps: 3}}\n"),
    "rlhf": stages(DATA, "- {name: rl, rlhf: {steps: 2, rewards: [{type: exactMatch}], optimizer: {maxGradNorm: 0.5}}}\n"),
    "rlhf with all it can read": stages(
        DATA,
        PAIRS,
        "- {name: rm, rewardModel: {maxSteps: 3}}\n",
        "- {name: rl, inputs: {demonstrations: data}, rlhf: {algorithm: ppo, ptxWeight: 1, rewards: [{type: rewardModel}]}}\n",
    ),
    "rlhf with an estimator of a default KL": stages(
        DATA, "- {name: rl, rlhf: {algorithm: reinforcePlusPlusBaseline, klEstimator: k3, maxLength: 257}}\n"
    ),
    "rlhf with rewards of others": stages(
        DATA,
        "- {name: rl, rlhf: {staleness: 2, rewards: [{type: judge, url: 'http://j/v1', model: m, keySecret: k}, {type: http, url: 'http://r'}]}}\n",
    ),
    "evaluate the base": stages(CHECK),
    "evaluate by the harness": evaluate(
        "tasks: [{name: h, benchmark: lmEvaluationHarness, harnessTask: mmlu, harnessMetric: acc, shots: 5}]"
    ),
    "several programs a problem": evaluate(
        "tasks: [{name: h, benchmark: humaneval, uri: h.jsonl, samples: 10, k: [1, 10], temperature: 0.8}]"
    ),
    "serve the base ungated": stages("- {name: live, serve: {ungated: true, port: 8080}}\n"),
    "serve gated": stages(DATA, SFT, CHECK, SERVE),
    "branches": stages(
        DATA,
        "- {name: low, sft: {epochs: 1}}\n",
        "- {name: high, inputs: {model: base}, sft: {epochs: 2}}\n",
        "- name: check\n  inputs: {model: high, baselines: [base, low]}\n"
        "  evaluate: {tasks: [{name: s, benchmark: skills}], gates: [{task: s, baseline: low, minEffect: 0.1}]}\n",
        "- {name: live, inputs: {model: high, report: check}, serve: {}}\n",
    ),
    "a later model, and the checked one served": stages(
        DATA, SFT, CHECK, "- {name: extra, sft: {epochs: 1}}\n", "- {name: live, inputs: {model: sft}, serve: {}}\n"
    ),
    "explicit dataset": stages(DATA, DATA.replace("data", "other", 1), "- {name: sft, inputs: {dataset: data}, sft: {}}\n"),
    "curate reads curate": stages(DATA, "- {name: two, inputs: {dataset: data}, curate: {sources: [{uri: x.jsonl}]}}\n"),
    "options of objectives": stages(
        PAIRS,
        "- {name: a, preference: {objective: simpo, beta: 2.5, gamma: 0.5}}\n",
        "- {name: b, preference: {objective: coh, goodMarker: Good., forget: 0}}\n",
        "- {name: c, preference: {robust: true, labelSmoothing: 0.1}}\n",
    ),
    "ways to train": stages(
        DATA,
        "- {name: a, sft: {adapter: {method: prefix, virtualTokens: 8, initText: Hi}, packing: false}}\n",
        "- {name: b, inputs: {model: base}, sft: {adapter: {method: ia3}, packing: true}}\n",
        "- {name: c, inputs: {model: base}, sft: {adapter: {method: none}}}\n",
        "- {name: d, sft: {adapter: {quantization: nf4}, optimizer: {paged: true}, parallelism: {workers: 2, sharding: replicate}}}\n",
        "- {name: e, rlhf: {adapter: {rank: 4, quantization: none}}}\n",
    ),
    "a range of workers": stages(DATA, "- {name: sft, sft: {parallelism: {minWorkers: 2, maxWorkers: 2}}}\n"),
    "judged answers": stages(
        "- {name: j, curate: {produces: PreferenceDataset, form: judgments, sources: [{uri: x.jsonl}]}}\n",
        "- {name: cut, preference: {objective: cut}}\n",
    ),
    "no baselines": stages("- {name: c, inputs: {baselines: []}, evaluate: {tasks: [{name: s, benchmark: skills}]}}\n"),
    "null is unset": stages(
        DATA, "- {name: sft, sft: {seed: null, adapter: null, maxSteps: null}, rlhf: null, inputs: null}\n"
    ),
    "numbers": stages(
        DATA,
        "- {name: sft, sft: {epochs: 1, seed: 1.0, maxLength: 512.0, optimizer: {learningRate: 1e-5, weightDecay: 0}}}\n",
    ),
    "cluster": HEAD
    + "  cluster: {image: plumbline, head: {cpu: '2', memory: 4Gi}, workers: [{name: gpu, gpus: 1, minReplicas: 0, maxReplicas: 4,"
    + " nodeSelector: {zone: a}, template: {spec: {tolerations: [{key: gpu, operator: Exists}]}}}]}\n"
    + "  queueName: team\n  suspend: true\n  backoffLimit: 0\n  activeDeadlineSeconds: 60\n  ttlSecondsAfterFinished: 0\n"
    + "  stages: [{name: c, cluster: {workers: []}, evaluate: {tasks: [{name: s, benchmark: gsm8k, uri: g.jsonl}]}}]\n",
    "as many stages as there may be": stages(DATA, *(f"- {{name: s{i}, sft: {{}}}}\n" for i in range(31))),
    "longest names": stages(DATA.replace("data", "d" * 30, 1)).replace("name: contract", f"name: {'r' * 63}"),
}

BAD = {
    "unknown field": stages(DATA, "- {name: sft, sft: {epochz: 1}}\n"),
    "unknown field of a stage": stages(DATA, "- {name: sft, sft: {}, retries: 3}\n"),
    "unknown field of spec": stages(DATA).replace("  model:", "  modle: {}\n  model:"),
    "wrong type": stages(DATA, "- {name: sft, sft: {seed: one}}\n"),
    "number as text": stages(DATA, "- {name: sft, sft: {seed: '1'}}\n"),
    "a claim's name that is a path": stages(DATA).replace("/tmp/workspace", "runs, persistentVolumeClaim: ../secrets/other"),
    "a queue's name in capitals": stages(DATA).replace("  workspace:", "  queueName: Team\n  workspace:"),
    "text as number": stages(DATA).replace("/tmp/workspace", "7"),
    "fraction for a whole number": stages(DATA, "- {name: sft, sft: {maxSteps: 1.5}}\n"),
    "list for a block": stages(DATA, "- {name: sft, sft: []}\n"),
    "null in a list": stages("- {name: data, curate: {sources: [null]}}\n"),
    "two kinds": stages(DATA, "- {name: sft, sft: {}, preference: {}}\n"),
    "no kind": stages(DATA, "- {name: sft}\n"),
    "only a null kind": stages(DATA, "- {name: sft, sft: null}\n"),
    "no stages": HEAD + "  stages: []\n",
    "stages missing": HEAD,
    "too many stages": stages(DATA, *(f"- {{name: s{i}, sft: {{}}}}\n" for i in range(32))),
    "duplicate name": stages(DATA, DATA),
    "name base": stages(DATA.replace("data", "base", 1)),
    "name in capitals": stages(DATA.replace("data", "Data", 1)),
    "name too long": stages(DATA.replace("data", "d" * 31, 1)),
    "name of the run too long": stages(DATA).replace("name: contract", f"name: {'r' * 64}"),
    "name of the run with two dots": stages(DATA).replace("name: contract", "name: a..b"),
    "forward reference": stages("- {name: sft, inputs: {dataset: data}, sft: {}}\n", DATA),
    "cycle": stages(DATA, "- {name: a, inputs: {model: b}, sft: {}}\n", "- {name: b, inputs: {model: a}, sft: {}}\n"),
    "reads itself": stages(DATA, "- {name: a, inputs: {model: a}, sft: {}}\n"),
    "wrong input type": stages(DATA, "- {name: sft, inputs: {model: data}, sft: {}}\n"),
    "pairs for chats": stages(PAIRS, "- {name: sft, inputs: {dataset: pairs}, sft: {}}\n"),
    "base as dataset": stages(DATA, "- {name: sft, inputs: {dataset: base}, sft: {}}\n"),
    "unknown stage": stages(DATA, "- {name: sft, inputs: {dataset: nowhere}, sft: {}}\n"),
    "unknown stage as baseline": stages(CHECK.replace("evaluate", "inputs: {baselines: [base, gone]}, evaluate")),
    "no data to tune on": stages(SFT),
    "only pairs to tune on": stages(PAIRS, SFT),
    "data comes later": stages(SFT, DATA),
    "no data to distill from": stages("- {name: more, synthesize: {distill: {}}}\n", SFT),
    "no method of synthesis": stages(DATA, "- {name: more, synthesize: {rows: 5}}\n"),
    "two methods of synthesis": stages(DATA, "- {name: more, synthesize: {distill: {}, explain: {}}}\n"),
    "pairs that no method makes": stages(DATA, "- {name: more, synthesize: {distill: {}, produces: PreferenceDataset}}\n"),
    "endpoint without a model": stages(
        DATA, '- {name: more, synthesize: {distill: {}, teacher: {endpoint: "https://a.example/v1"}}}\n'
    ),
    "endpoint that is no URL": stages(
        DATA, "- {name: more, synthesize: {distill: {}, teacher: {endpoint: a.example, model: m}}}\n"
    ),
    "key without an endpoint": stages(DATA, "- {name: more, synthesize: {distill: {}, teacher: {keySecret: k}}}\n"),
    "rewards and a judge": stages(
        DATA, "- {name: more, synthesize: {selfImprove: {judge: {}, rewards: [{type: exactMatch}]}}}\n"
    ),
    "neither rewards nor a judge": stages(DATA, "- {name: more, synthesize: {selfImprove: {}}}\n"),
    "no pairs to prefer": stages(DATA, "- {name: dpo, preference: {}}\n"),
    "role of another kind": stages(DATA, "- {name: sft, inputs: {report: data}, sft: {}}\n"),
    "empty role of another kind": stages(DATA, "- {name: sft, inputs: {baselines: []}, sft: {}}\n"),
    "serve without evaluate": stages(DATA, SFT, SERVE),
    "serve without gates": stages(CHECK.replace(", gates: [{task: skills, threshold: 0.5}]", ""), SERVE),
    "serve before its gate": stages(SERVE, CHECK),
    "serve what was not evaluated": stages(DATA, CHECK, SFT, SERVE),
    "serve base, evaluated another": stages(DATA, SFT, CHECK, "- {name: live, inputs: {model: base}, serve: {}}\n"),
    "nearest report has no gates": stages(
        CHECK, "- {name: again, evaluate: {tasks: [{name: s, benchmark: skills}]}}\n", SERVE
    ),
    "number too small": stages(DATA, "- {name: sft, sft: {batchSize: 0}}\n"),
    "number at an open bound": stages(DATA, "- {name: sft, sft: {optimizer: {learningRate: 0}}}\n"),
    "number too large": stages(DATA, "- {name: sft, sft: {maxLength: 1048577}}\n"),
    "share above one": stages(DATA, "- {name: sft, sft: {adapter: {dropout: 1.1}}}\n"),
    "port out of range": stages("- {name: live, serve: {ungated: true, port: 65536}}\n"),
    "unknown enum value": stages(DATA, "- {name: sft, sft: {trainOn: some}}\n"),
    "unknown algorithm": stages(DATA, "- {name: rl, rlhf: {algorithm: reinforce}}\n"),
    "remote code": stages(DATA).replace('base: "builtin://tiny"', 'base: "builtin://tiny", trustRemoteCode: true'),
    "quantity": stages(DATA.replace("name: data", "name: data, cluster: {head: {memory: 4 gigabytes}}")),
    "worker group twice": stages(DATA.replace("name: data", "name: data, cluster: {workers: [{gpus: 1}, {}]}")),
    "worker group called head": stages(DATA.replace("name: data", "name: data, cluster: {workers: [{name: head}]}")),
    "half a range of replicas": stages(DATA.replace("name: data", "name: data, cluster: {workers: [{maxReplicas: 3}]}")),
    "replicas out of their range": HEAD
    + "  cluster: {workers: [{replicas: 5, minReplicas: 0, maxReplicas: 4}]}\n"
    + "  stages: [{name: c, evaluate: {tasks: [{name: s, benchmark: skills}]}}]\n",
    "accelerator that is no label": stages(
        DATA.replace("name: data", "name: data, cluster: {head: {accelerator: A100 80G}}")
    ),
    "no sources": stages("- {name: data, curate: {sources: []}}\n"),
    "benchmark without its data": evaluate("tasks: [{name: g, benchmark: gsm8k}]"),
    "harness without a task": evaluate("tasks: [{name: h, benchmark: lmEvaluationHarness}]"),
    "harness task of another benchmark": evaluate("tasks: [{name: h, benchmark: skills, harnessTask: mmlu}]"),
    "task twice": evaluate(f"tasks: [{SKILLS}, {SKILLS}]"),
    "gate on no task": evaluate(f"tasks: [{SKILLS}], gates: [{{task: other, threshold: 0.5}}]"),
    "gate without measure": evaluate(f"tasks: [{SKILLS}], gates: [{{task: skills}}]"),
    "gate with two measures": evaluate(f"tasks: [{SKILLS}], gates: [{{task: skills, baseline: base, threshold: 0.5}}]"),
    "gate with unknown baseline": evaluate(f"tasks: [{SKILLS}], gates: [{{task: skills, baseline: sft}}]"),
    "confidence below its bound": evaluate(f"tasks: [{SKILLS}], confidence: 0.5"),
    "option of another objective": stages(PAIRS, "- {name: kto, preference: {objective: kto, gamma: 1.0}}\n"),
    "option that no pair objective has": stages(PAIRS, "- {name: dpo, preference: {desirableWeight: 1.0}}\n"),
    "label smoothing at its bound": stages(PAIRS, "- {name: dpo, preference: {labelSmoothing: 0.5}}\n"),
    "option of another adapter": stages(DATA, "- {name: sft, sft: {adapter: {method: prefix, rank: 8}}}\n"),
    "virtual tokens of a LoRA": stages(DATA, "- {name: sft, sft: {adapter: {virtualTokens: 8}}}\n"),
    "PiSSA in four bits": stages(PAIRS, "- {name: dpo, preference: {adapter: {init: pissa, quantization: nf4}}}\n"),
    "four bits in shards": stages(
        PAIRS, "- {name: rm, rewardModel: {adapter: {quantization: nf4}, parallelism: {workers: 2}}}\n"
    ),
    "paged optimizer in shards": stages(
        DATA, "- {name: sft, sft: {optimizer: {paged: true}, parallelism: {cpuOffload: true}}}\n"
    ),
    "replies as long as chats": stages(DATA, "- {name: sft, sft: {maxLength: 64, earlyStopping: {maxTokens: 64}}}\n"),
    "too few probes": stages(DATA, "- {name: sft, sft: {earlyStopping: {prompts: 4}}}\n"),
    "packed virtual tokens": stages(DATA, "- {name: sft, sft: {adapter: {method: prompt}, packing: true}}\n"),
    "embeddings beside whole weights": stages(DATA, "- {name: sft, sft: {adapter: {method: none}, embeddings: {}}}\n"),
    "group of one": stages(DATA, "- {name: rl, rlhf: {algorithm: grpo, groupSize: 1}}\n"),
    "critic without PPO": stages(DATA, "- {name: rl, rlhf: {gaeLambda: 0.9}}\n"),
    "target of a KL of weight 0": stages(DATA, "- {name: rl, rlhf: {algorithm: ppo, klCoefficient: 0, klTarget: 1}}\n"),
    "estimator of a KL of weight 0": stages(DATA, "- {name: rl, rlhf: {klEstimator: k2}}\n"),
    "stale answers of those who take turns": stages(
        DATA, "- {name: rl, rlhf: {staleness: 1, rollout: {placement: colocated}}}\n"
    ),
    "vLLM that takes turns": stages(DATA, "- {name: rl, rlhf: {rollout: {engine: vllm, placement: colocated}}}\n"),
    "adapters in vLLM": stages(DATA, "- {name: live, serve: {ungated: true, engine: vllm, adapters: {discover: true}}}\n"),
    "answers as long as all": stages(DATA, "- {name: rl, rlhf: {maxLength: 64, sampling: {maxTokens: 64}}}\n"),
    "default answers as long as all": stages(DATA, "- {name: rl, rlhf: {maxLength: 256}}\n"),
    "reward without its endpoint": stages(DATA, "- {name: rl, rlhf: {rewards: [{type: judge, model: m}]}}\n"),
    "pattern of another reward": stages(DATA, "- {name: rl, rlhf: {rewards: [{type: exactMatch, pattern: a}]}}\n"),
    "reward model that nobody trains": stages(DATA, "- {name: rl, rlhf: {rewards: [{type: rewardModel}]}}\n"),
    "demonstrations not named": stages(DATA, "- {name: rl, rlhf: {algorithm: ppo, ptxWeight: 1}}\n"),
    "whole weights in rollouts": stages(DATA, "- {name: rl, rlhf: {adapter: {method: none}}}\n"),
    "four bits in rollouts": stages(DATA, "- {name: rl, rlhf: {adapter: {quantization: nf4}}}\n"),
    "half a range of workers": stages(DATA, "- {name: sft, sft: {parallelism: {minWorkers: 2}}}\n"),
    "a number and a range of workers": stages(
        DATA, "- {name: sft, sft: {parallelism: {workers: 2, minWorkers: 1, maxWorkers: 2}}}\n"
    ),
    "a range of workers upside down": stages(DATA, "- {name: sft, sft: {parallelism: {minWorkers: 3, maxWorkers: 2}}}\n"),
    "confidence at its bound": evaluate(f"tasks: [{SKILLS}], confidence: 1"),
    "model missing": stages(DATA).replace('  model: {base: "builtin://tiny"}\n', ""),
    "empty base": stages(DATA).replace("builtin://tiny", ""),
    "wrong version": stages(DATA).replace("v1alpha1", "v1"),
}
