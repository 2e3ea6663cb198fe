"""How judges are asked and read. A new style is one file with a `STYLE`, and one line here. Pure."""

from __future__ import annotations

from plumbline.evaluation.judges.styles import mt_bench, pandalm, plumbline, prometheus
from plumbline.evaluation.judges.styles.style import Style

STYLES: dict[str, Style] = {
    "plumbline": plumbline.STYLE,
    "pandalm": pandalm.STYLE,
    "prometheus": prometheus.STYLE,
    "mtBench": mt_bench.STYLE,
}
"""By their name in `JudgeSpec.style`."""
