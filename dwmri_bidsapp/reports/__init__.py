"""The HTML reports: one page for each participant, and one for the group; self-contained, no network."""

from .group import write_group_report
from .subject import write_subject_report

__all__ = ["write_group_report", "write_subject_report"]
