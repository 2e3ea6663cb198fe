"""Peak memory of loss and gradient over a vocabulary of 150,000, with the whole logits and in chunks: `python benchmarks/head_memory.py`.

Hidden states of 64 numbers in float32, so that logits are what takes memory. Each measurement is a process of its own: the peak of its
resident memory above what it had with the inputs and weights. Whole logits of 32,768 tokens are 20 GB, and there are three of that
size at once; they are measured at the sizes in `--whole`, and ours at 32,768 tokens is held against the largest of these: what grows
with the tokens is then larger still. Beside it stands what the line through the two largest sizes says of 32,768 tokens. Writes
`benchmarks/results/head_memory.json` and `.md`. Exit code 1 if a claim does not hold.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
from pathlib import Path
from typing import Any

from side_by_side import in_child, judge

VOCABULARY, HIDDEN, TOKENS = 150_000, 64, 32_768
WHOLE, OURS, TRAINED, ANSWERS = "whole logits", "plumbline", "plumbline, trained head", "plumbline, targets are a quarter"
TIMES = 3.0
LOSS_TOLERANCE = 1e-5


def measure(method: str, tokens: int) -> dict[str, float]:
    """In this process: mean loss, norm of the gradient of the states, peak memory."""
    import torch
    from torch import nn

    from plumbline.training.head import target_log_probs

    torch.set_num_threads(1)
    torch.manual_seed(0)
    head = nn.Linear(HIDDEN, VOCABULARY, bias=False).requires_grad_(method == TRAINED)
    hidden = torch.randn(tokens, HIDDEN).requires_grad_()
    targets = torch.randint(0, VOCABULARY, (tokens,))
    few = torch.arange(0, tokens, 4)
    target_log_probs(nn.Linear(HIDDEN, 8), hidden[:4], targets[:4] % 8).sum().backward()  # what libraries set up once
    hidden.grad = None
    before = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 1024
    if method == WHOLE:
        loss = nn.functional.cross_entropy(head(hidden), targets)
    elif method == ANSWERS:
        loss = -target_log_probs(head, hidden[few], targets[few]).mean()
    else:
        loss = -target_log_probs(head, hidden, targets).mean()
    loss.backward()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert hidden.grad is not None
    return {"loss": float(loss.detach()), "gradient": float(hidden.grad.norm()), "megabytes": peak / 1024}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--whole", nargs="+", type=int, default=[1024, 2048, 4096])
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(measure(options.child[0], int(options.child[1]))))
        return 0

    sizes = sorted(options.whole)
    cases = [(WHOLE, size) for size in sizes] + [(OURS, size) for size in (*sizes, TOKENS)]
    cases += [(TRAINED, TOKENS), (ANSWERS, TOKENS)]
    found = {(method, tokens): in_child(__file__, "--child", method, str(tokens)) for method, tokens in cases}
    table: list[dict[str, Any]] = [
        {"method": method, "tokens": tokens, "megabytes": round(one["megabytes"])} for (method, tokens), one in found.items()
    ]
    largest = sizes[-1]
    whole = found[WHOLE, largest]["megabytes"]
    if len(sizes) > 1:
        slope = (whole - found[WHOLE, sizes[-2]]["megabytes"]) / (largest - sizes[-2])
        line = round(whole + slope * (TOKENS - largest))
        table.append(
            {"method": f"{WHOLE}, by the line through {sizes[-2]} and {largest}", "tokens": TOKENS, "megabytes": line}
        )
    print(*table, sep="\n", flush=True)
    claims = []
    for method in (OURS, TRAINED, ANSWERS):
        ours = found[method, TOKENS]["megabytes"]
        said = f"{method}, {TOKENS} tokens: {ours:.0f} MB, {whole / ours:.1f} times below {WHOLE} of {largest} tokens"
        claims.append((ours * TIMES <= whole, f"{said} (at least {TIMES:g}), which are {TOKENS // largest} times fewer"))
    for size in sizes:
        one, other = found[OURS, size], found[WHOLE, size]
        gaps = [abs(one[key] / other[key] - 1) for key in ("loss", "gradient")]
        said = f"{size} tokens: loss and gradient norm are those of {WHOLE} to {max(gaps):.1g} (allowed {LOSS_TOLERANCE})"
        claims.append((max(gaps) <= LOSS_TOLERANCE, said))
    head = f"Peak memory of loss and gradient, vocabulary {VOCABULARY:,}, hidden {HIDDEN}, float32"
    return judge("head_memory", head, ("method", "tokens", "MB above inputs and weights"), table, claims)


if __name__ == "__main__":
    sys.exit(main())
