"""Answers that refuse, or begin with what every such model says of itself. English and Chinese."""

from __future__ import annotations

import re

from plumbline.api.curation.filters import RefusalsSpec
from plumbline.data.filters.words import learned
from plumbline.data.row import Reject, Row

READ = 400  # characters of an answer in which a refusal stands
REASON = 200  # characters, of Latin script, in which it gives its reason


def _any(*words: str) -> str:
    """An alternative of single words, given in lines, as a regular expression."""
    return f"(?:{'|'.join(' '.join(words).split())})"


# Markup and quotation marks, and a courtesy.
_START = re.compile(
    r"(?:[\s\"'“”*>#_\u200b\ufeff-]|</?(?:p|div|span|b|i|strong|em|h\d|blockquote|br)>)*"
    r"(?:(?:hello|hi|oh|well|hmm|thank you|thanks)\b[^.!?\n]{0,60}?[.,!][\s*]+)?",
    re.IGNORECASE,
)
_QUOTED = re.compile(r"\s*(?:\"[^\"\n]*\"|“[^”\n]*”)(?=.*\w)", re.DOTALL)  # what somebody says, and the text goes on
_SORRY = (
    r"(?:(?:(?:i[’']?m|i am|we are) (?:\w+ )?sorry(?: \w+,)?|sorry|i (?:must |do )?apologi[sz]e|(?:my )?apologies|unfortunately|"
    r"regrettably)[\s,.!:;—-]*(?:but |that |however,? )?(?:(?:i[’']?m|i am) afraid (?:that )?)?|(?:i[’']?m|i am) afraid (?:that )?)"
)
_APOLOGY = f"{_SORRY}?"
_AI = r"an? (?:large |text-based |virtual |responsible |ethical )?(?:ai\b|artificial intelligence\b|language model\b|chat ?bot\b|gpt\b)[\w\s-]{0,30}"
_AS_AI = rf"(?:(?:as|being|since i[’' ]a?m|because i[’' ]a?m|i[’' ]a?m(?: just| only)?) {_AI}[\s,.;—-]*(?:and |but |so )?)?"
_NOT_ABLE = r"(?:cannot|can ?not|can[’']?t|could not|couldn[’']?t|(?:won[’']?t|will not)(?: be able to)?|(?:am|[’']?m) (?:not able|unable) to)"
# Verbs of what is asked of a model. "I cannot stand the taste" is an answer, and so is "I cannot help but laugh".
_DO = _any(
    "help assist answer respond provide give offer share generate create produce complete perform fulfill? comply access browse",
    "search retrieve open view see play draw design display send determine predict execute process carry do engage support",
    "participate recommend suggest write tell discuss advise condone promote encourage",
)
_HAVE = _any(
    "ability abilities capability capabilities capacity access personal feelings emotions enough sufficient real-time",
    "information context data preferences opinions",
)
_IDIOM = (
    r"(?:help (?:but\b|\w+ing\b|myself)|(?:recommend|praise|promote)\b[^.!?\n]{0,80}\benough\b|tell you how|give (?:up|in)\b|"
    r"see the |(?:have|possess) enough (?:money|time|space|room))"
)
_CANNOT = (
    rf"(?:{_NOT_ABLE} (?:\w+ly )?(?!{_IDIOM}){_DO}\b|"
    rf"(?:do not|don[’']?t) (?:\w+ly )?(?!{_IDIOM})(?:have|possess) (?:the |any )?{_HAVE}\b)"
)
# A matter of will, not of what a model lacks.
_DECLINES = (
    rf"(?:i (?:(?:must|have to|will have to|need to) (?:\w+ly )?(?:decline|refuse)|refuse to {_DO})\b"
    r"|i(?: am|[’']m) not comfortable (?:\w+ing|with)\b|i (?:do not|don[’']t) feel comfortable (?:\w+ing|with)\b"
    r"|it(?: is|[’']s) not (?:appropriate|ethical) for me to\b)"
)
_TASK = r"(?:this|the) (?:type of )?(?:task|instruction|request|model|gpt model)"
_REFUSES = re.compile(
    rf"{_APOLOGY}{_AS_AI}(?:(?:i|and) ?{_CANNOT}|{_DECLINES}|{_TASK} (?:cannot|can not|can't|requires|involves|does not meet|is (?:not|beyond)))"
    rf"|{_SORRY}{_AS_AI}we {_CANNOT}"
    rf"|{_APOLOGY}it is (?:not possible|impossible) for (?:me|us|an? (?:gpt )?language models?|gpt)\b"
    r"|(?:there (?:is|was) )?no (?:input|text|passage|article|image|data)\b[^.\n]{0,20}\b(?:provided|given|supplied)\b"
    r"|<no ?output>|no output\b|\[?n/a\]?$",
    re.IGNORECASE,
)
_DISCLAIMER = re.compile(
    rf"{_APOLOGY}(?:(?:as|being) {_AI}|(?:i am|i[’']m) (?:just |only )?{_AI}[,.;]? (?:and|so|but)\b)", re.IGNORECASE
)
_MISSING = re.compile(
    r"(?:please|can you|could you|would you)(?: please| kindly)? (?:provide|give|share|specify|clarify|tell|supply)"
    r"|(?:need|without|require)s? (?:more|additional|further|any|the) (?:\w+ )?(?:information|context|details?|data|input)"
    r"|(?:no|not|n't|any) (?:\w+ ){0,2}(?:provided|given|specified|attached|supplied|mentioned)"
    r"|(?:missing|incomplete|insufficient) (?:input|information|context)"
    r"|(?:did not|didn't|have not|haven't) (?:provide|give|specif|share)"
    r"|(?:请|麻烦您?)(?:您|你)?(?:重新)?(?:提供|告诉|补充)|(?:没有|未|并未)(?:给出|提供|给|告诉)|需要更多|缺少",
    re.IGNORECASE,
)
_HARM = _any(
    r"illegal unlawful laws? harm\w* unethical ethic\w* immoral dangerous unsafe inappropriate offensive malicious violen\w+ violat\w+",
    r"hate\w* hurt\w* discriminat\w+ racis\w+ sexis\w+ explicit privacy policy policies guidelines condone promote encourage",
    r"abus\w+ weapons? suicid\w+ self-harm drugs? crim\w+ fraud\w* steal\w* hack\w* terroris\w+ stereotyp\w+ confidential",
    r"personal\s(?:information|details|data)",
)
_UNSAFE = re.compile(rf"\b{_HARM}\b|违法|非法|有害|伤害|道德|危险|不当|暴力|歧视|色情|隐私|法律|犯罪|仇恨", re.IGNORECASE)
# "I can't help with that": nothing that the model lacks is named, so it will be the request.
_BARE = re.compile(
    rf"{_APOLOGY}{_AS_AI}{_DECLINES}|{_APOLOGY}{_AS_AI}i {_NOT_ABLE} (?:help|assist|fulfill?|comply|do|answer|tell|provide assistance)(?: you)?(?: with| to| by)?"
    r"(?: (?:that|this|you|your|the|such)\b[^.!\n]{0,40})?(?:[.!,]|$)"
    r"|(?:很?抱歉|对不起)[，,。！]?(?:但是?)?我(?:无法|不能|不会)(?:帮助您?|协助|回答|满足|提供)(?:这个|该|此|这样的)?"
    r"(?:问题|请求|要求|内容|信息|帮助)?(?:[。！，]|$)",
    re.IGNORECASE,
)
_ZH_APOLOGY = r"(?:(?:我?(?:很|非常|十分)?(?:抱歉|遗憾)|对不起|不好意思)[，,。！!]?(?:但是?|不过)?[，,]?\s*)"
_ZH_AI = r"(?:作为|我?是)(?:一个|一名|一款|一位)?(?:大型|文字型|基于\w{0,6}的)? ?(?:AI|人工智能|语言模型|聊天机器人|机器人|虚拟助手)"
_ZH_DO = _any(
    "直接 准确 为您 为你 给您 给出 向您 对 真正 够 在 实时 提供 回答 生成 创建 完成 访问 查看 打开 播放 绘制 执行 帮助 协助 满足 确定 预测",
    "进行 浏览 获取 显示 做 说",
)
_ZH_REFUSES = re.compile(
    rf"(?:{_ZH_APOLOGY}|(?:由于|因为|喔不，)?{_ZH_AI}|(?:由于|因为)?[^。！？\n]{{0,12}}?我)[^。！？\n]{{0,30}}?"
    rf"(?:无法|不能|不会|没有办法|没有能力){_ZH_DO}"
    rf"|{_ZH_APOLOGY}(?:您|你)?(?:并?没有|并未|未)(?:提供|给|告诉)",
)
_ZH_DISCLAIMER = re.compile(rf"{_ZH_APOLOGY}?(?:由于|因为)?作为{_ZH_AI.removeprefix('(?:作为|我?是)')}")


def check_refusals(row: Row, spec: RefusalsSpec) -> Row:
    """Drop a row with an answer that refuses in one of the ways that the spec names.

    Raises:
        Reject: it does.
    """
    answers = learned(row) if row.prompts else ()  # a text answers nothing
    for answer in answers:
        kind = refusal(answer)
        if kind in spec.drop and not _is_asked_for(answer, row.prompts):
            raise Reject(f"refusal: {kind}", answer)
    return row


def refusal(answer: str) -> str | None:
    """What kind of refusal an answer begins with.

    Returns:
        `unsafe`, `missing`, `unable`, `disclaimer`, or None.
    """
    if _QUOTED.match(answer):
        return None
    start = _START.match(answer)
    head = answer[start.end() if start else 0 :][:READ]
    chinese = not head[:20].isascii()
    if _REFUSES.match(head) or (chinese and _ZH_REFUSES.match(head)):
        if _UNSAFE.search(head[: REASON // 3 if chinese else REASON]) or _BARE.match(head):
            return "unsafe"
        return "missing" if _MISSING.search(head) else "unable"
    return "disclaimer" if _DISCLAIMER.match(head) or (chinese and _ZH_DISCLAIMER.match(head)) else None


def _is_asked_for(answer: str, prompts: list[str]) -> bool:
    """Whether the prompt has the answer's first words itself: a sentence to rewrite or translate, a line to continue."""
    first = " ".join(answer.split()[:4]).casefold()
    return bool(first) and any(first in " ".join(prompt.split()).casefold() for prompt in prompts)
