"""What every plugin keeps to, as checks that anybody can run over his own: `epp plugins test FILE`, or in a test.

def test_contract():
check("my_scorer.py").raise_if_broken()
"""

from epp.contract.cases import Case, case, cases, reordered
from epp.contract.checks import CHECKS, Broken, Check
from epp.contract.manual import SECTIONS, sections
from epp.contract.report import Report, Result, check
from epp.contract.subject import Subject

__all__ = [
    "CHECKS",
    "SECTIONS",
    "Broken",
    "Case",
    "Check",
    "Report",
    "Result",
    "Subject",
    "case",
    "cases",
    "check",
    "reordered",
    "sections",
]
