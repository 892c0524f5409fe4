"""The report: `<out>/eval/report.html` for people and `metrics.jsonl` for programs.

Both are pure functions of the files that evaluations and trainings have left behind, and written
again after each evaluation.
"""

from eval.report.writing import write

__all__ = ["write"]
