"""What a comparison shows: records, tables, charts, a page."""

from bipe.report.html import write_report
from bipe.report.plots import (
    convergence_figure,
    length_curve_figure,
    scheme_panels_figure,
    segment_histogram_figure,
)
from bipe.report.records import append_record, read_records
from bipe.report.rendering import figure_png, figure_svg
from bipe.report.tables import difference_table, markdown_table, overview_table, score_table

__all__ = [
    "append_record",
    "convergence_figure",
    "difference_table",
    "figure_png",
    "figure_svg",
    "length_curve_figure",
    "markdown_table",
    "overview_table",
    "read_records",
    "scheme_panels_figure",
    "score_table",
    "segment_histogram_figure",
    "write_report",
]
