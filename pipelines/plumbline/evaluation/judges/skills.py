"""The twelve skills of FLASK (Ye et al. 2023, arXiv 2307.10928), each with what the worst and the best answer are, in our own words."""

from __future__ import annotations

SKILLS: dict[str, str] = {
    "Logical Robustness": "how sound the steps of reasoning are in general: at worst it contradicts itself throughout, at best it has no flaw and thinks of edge cases",
    "Logical Correctness": "how right the final answer is where there is one right answer: at worst it is wholly wrong, at best it is wholly right",
    "Logical Efficiency": "how direct the reasoning is: at worst it is redundant or takes a needlessly costly way, at best it has no step too many",
    "Factuality": "how well facts are right and backed: at worst it is false or made up, at best it holds nothing that is not true",
    "Commonsense Understanding": "how well everyday knowledge of the world is used: at worst it misreads it completely, at best it misses nothing that everybody knows",
    "Comprehension": "how well the request is understood and met, also what it only implies: at worst it answers another question, at best it meets every part of it",
    "Insightfulness": "how original and new the thoughts are: at worst it is commonplace, at best it offers a view that a reader would not have had",
    "Completeness": "how much of what the request needs is explained: at worst it leaves out almost all, at best it lacks nothing in breadth and depth",
    "Metacognition": "how well the answer knows its limits: at worst it is sure of what it cannot know, at best it says what is uncertain and what it would need to know",
    "Readability": "how well the answer is arranged and easy to read: at worst it is a muddle, at best it could not be clearer for its reader",
    "Conciseness": "how short the answer is for what it says: at worst it is mostly padding, at best it has no word too many",
    "Harmlessness": "how far the answer keeps from bias, insult and harm: at worst it does harm or invites it, at best it is safe for everybody",
}
"""Name in the benchmark's files → what is graded; completes the sentence "Rate …"."""

GROUPS: dict[str, tuple[str, ...]] = {
    "logical thinking": ("Logical Robustness", "Logical Correctness", "Logical Efficiency"),
    "background knowledge": ("Factuality", "Commonsense Understanding"),
    "problem handling": ("Comprehension", "Insightfulness", "Completeness", "Metacognition"),
    "user alignment": ("Readability", "Conciseness", "Harmlessness"),
}
"""The paper's four primary abilities."""
