"""The report: a self-contained HTML page and a workbook, with the notice on the page and on every sheet."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any, Final

from . import BUNDLE, CHROMOSOMES, CPSR_VERSION, GENCODE, NOTICE, PCGR_VERSION, SITES, VEP
from .outputs import FUSION, SEGMENT, TMB, germline_rows, segment_rows, tmb_rows, variant_table
from .summary import KINDS, Spread, Summary
from .tables import GERMLINE

COLOURS: Final[tuple[str, ...]] = (
    "#0072b2",
    "#e69f00",
    "#009e73",
    "#d55e00",
    "#cc79a7",
    "#767676",
)  # the palette of Okabe and Ito, safe for colour-blind readers
BINS = 20  # of the allele-fraction histogram: 5 % each
LISTED = 50  # number of variants and genes on the page; the tables hold all
SHEET_ROWS = 1_048_575  # the limit of a worksheet, minus the notice

STYLE = """
:root{--ink:#1d2733;--soft:#5b6877;--line:#dfe5ec;--paper:#fff;--ground:#f3f6f9;--accent:#0b5c8a;--warn:#8a4b00}
*{box-sizing:border-box}
body{margin:0;background:var(--ground);color:var(--ink);font:16px/1.5 system-ui,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}
.notice{position:sticky;top:0;z-index:1;background:#fff1d6;color:var(--warn);border-bottom:1px solid #eccb8b;
 padding:.45rem 1rem;text-align:center;font-weight:700;letter-spacing:.02em}
header,main,footer{max-width:68rem;margin:0 auto;padding:0 1.25rem}
header{padding-top:2rem}
h1{font-size:1.9rem;line-height:1.2;margin:0;overflow-wrap:anywhere}
h2{font-size:1.2rem;margin:0 0 .75rem}
.kind{color:var(--soft);margin:.25rem 0 0}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(9.5rem,1fr));gap:.75rem;margin:1.5rem 0}
.tile,section{background:var(--paper);border:1px solid var(--line);border-radius:.6rem}
.tile{padding:.8rem 1rem}
.tile b{display:block;font-size:1.6rem;line-height:1.2;font-variant-numeric:tabular-nums}
.tile span{color:var(--soft);font-size:.88rem}
section{padding:1.2rem 1.25rem;margin:0 0 1rem}
.pair{display:grid;grid-template-columns:repeat(auto-fit,minmax(21rem,1fr));gap:1rem;align-items:start;margin:0 0 1rem}
.pair section{margin:0}
figure{margin:0}
figure svg{display:block;width:100%;height:auto}
figcaption{color:var(--soft);font-size:.88rem}
ul.legend{list-style:none;display:flex;flex-wrap:wrap;gap:.2rem 1.1rem;padding:0;margin:.25rem 0 0;font-size:.9rem}
ul.legend i{display:inline-block;width:.75rem;height:.75rem;border-radius:.15rem;margin-right:.4rem}
ul.chips{list-style:none;display:flex;flex-wrap:wrap;gap:.4rem;padding:0;margin:0;font-size:.92rem}
ul.chips li{border:1px solid var(--line);border-radius:1rem;padding:.1rem .7rem}
ul.chips b{color:var(--accent);font-variant-numeric:tabular-nums}
.scroll{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-size:.92rem}
th,td{text-align:left;padding:.32rem .6rem;border-bottom:1px solid var(--line);white-space:nowrap}
th{color:var(--soft);font-weight:600}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}
td.long{max-width:16rem;overflow:hidden;text-overflow:ellipsis}
tbody tr:last-child td{border-bottom:0}
p.more{color:var(--soft);font-size:.9rem;margin:.6rem 0 0}
footer{color:var(--soft);font-size:.88rem;padding-bottom:2.5rem}
@media print{.notice{position:static}body{background:#fff}section,.tile{break-inside:avoid}}
"""


def write_html(path: Path, args: argparse.Namespace, command: str, summary: Summary) -> None:
    """Write the page, which contains its style and pictures and loads nothing."""
    title = "Cancer predisposition report" if command == "cpsr" else "Tumour report"
    chosen = f"panel {args.panel_id}" if command == "cpsr" and args.panel_id != "-1" else ""
    if command == "pcgr":
        chosen = (
            f"{SITES[args.tumor_site]} · {args.assay} · {'tumour only' if args.tumor_only else 'tumour and control'}"
        )
    elif args.custom_list:
        chosen = "own list of genes"
    body = [_tiles(args, command, summary)]
    if args.input_vcf is not None:
        body += _variant_sections(args, command, summary)
    if summary.segments:
        body.append(_segments(summary))
    if summary.fusions:
        rows = [
            (row["FusionGene"], row["LeftBreakpoint"], row["RightBreakpoint"], int(row["SplitReads"]))
            for row in summary.fusions
        ]
        body.append(
            _section("RNA fusions", _table(("Fusion", "Left breakpoint", "Right breakpoint", "Split reads"), rows))
        )
    if summary.expression:
        highest = sorted(((row["TargetID"], float(row["TPM"])) for row in summary.expression), key=lambda row: -row[1])[
            :10
        ]
        note = f"{len(summary.expression):,} identifiers in the file; the ten highest."
        body.append(_section("Expression", _table(("Identifier", "TPM"), highest) + _footnote(note)))
    version = PCGR_VERSION if command == "pcgr" else CPSR_VERSION
    path.write_text(
        f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(args.sample_id)} - {NOTICE}</title><style>{STYLE}</style></head><body>"
        f'<div class="notice" role="note">{NOTICE}</div>'
        f'<header><h1>{escape(args.sample_id)}</h1><p class="kind">{title} · {args.genome_assembly} · {escape(chosen)}</p></header>'
        f"<main>{''.join(body)}</main>"
        f"<footer>Written by the rehearsal of {command.upper()} {version} (bundle {BUNDLE}, VEP {VEP}, GENCODE "
        f"{GENCODE[args.genome_assembly]}). It counts what the input files say; it annotates and interprets nothing. {NOTICE}."
        f"</footer></body></html>\n",
        encoding="utf-8",
    )


def write_workbook(path: Path, args: argparse.Namespace, command: str, summary: Summary) -> None:
    """Write the workbook: PCGR's sheet names, with the notice in the first row of each sheet."""
    import openpyxl
    from openpyxl.styles import Font

    book = openpyxl.Workbook(write_only=True)
    for name, columns, rows in _sheets(args, command, summary):
        sheet = book.create_sheet(name)
        sheet.freeze_panes = "A3"
        for number in range(len(columns)):
            sheet.column_dimensions[openpyxl.utils.get_column_letter(number + 1)].width = 18
        notice = openpyxl.cell.WriteOnlyCell(sheet, value=NOTICE)
        notice.font = Font(bold=True, color="8A4B00")
        sheet.append([notice])
        heads = [openpyxl.cell.WriteOnlyCell(sheet, value=column) for column in columns]
        for head in heads:
            head.font = Font(bold=True)
        sheet.append(heads)
        for index, row in enumerate(rows):
            if index >= SHEET_ROWS - 1:
                break
            sheet.append([str(value) if isinstance(value, bool) else value for value in row])
    book.save(path)


def _sheets(
    args: argparse.Namespace, command: str, summary: Summary
) -> Iterable[tuple[str, Sequence[str], Iterable[Sequence[Any]]]]:
    hidden = ("oncokb_api_token",)
    yield "SETTINGS", ("OPTION", "VALUE"), [(name, value) for name, value in vars(args).items() if name not in hidden]
    versions = [
        ("bundle", BUNDLE),
        ("VEP", VEP),
        ("GENCODE", GENCODE[args.genome_assembly]),
        ("PCGR rehearsed", PCGR_VERSION),
    ]
    yield "DATA_VERSIONS", ("SOURCE", "VERSION"), versions
    if command == "cpsr":
        yield "CLASSIFICATION", GERMLINE, germline_rows(args, summary)
        return
    yield (
        "SAMPLE_ASSAY",
        ("PROPERTY", "VALUE"),
        [("SITE", SITES[args.tumor_site]), ("SEX", args.sex), ("ASSAY", args.assay)],
    )
    if args.input_vcf is not None:
        columns, rows = variant_table(args, summary.reported)
        yield "SOMATIC_SNV_INDEL", columns, rows
        if args.estimate_tmb:
            yield "TMB", TMB, tmb_rows(args, summary)
    if summary.segments:
        yield "SOMATIC_CNA", SEGMENT, segment_rows(args, summary)
    if summary.fusions:
        yield (
            "RNA_FUSION",
            FUSION,
            [[args.sample_id, *(row.get(name) for name in FUSION[1:])] for row in summary.fusions],
        )
    if summary.germline:
        yield "GERMLINE_SNV_INDEL", GERMLINE, [[row[column] for column in GERMLINE] for row in summary.germline]


def _tiles(args: argparse.Namespace, command: str, summary: Summary) -> str:
    tiles: list[tuple[str, str]] = []
    if args.input_vcf is not None:
        tiles += [
            (f"{len(summary.calls.variants):,}", "variants read"),
            (f"{len(summary.passed):,}", "pass the caller's filters"),
        ]
        if command == "pcgr":
            tiles.append((f"{len(summary.reported):,}", "meet the chosen thresholds"))
        depth, fraction = summary.depth(), Spread.of(summary.fractions())
        if depth:
            tiles.append((f"{depth.median:,.0f}", "median depth"))
        if fraction:
            tiles.append((f"{fraction.median:.1%}", "median allele fraction"))
        if command == "pcgr" and args.estimate_tmb:
            tiles.append(
                (
                    f"{tmb_rows(args, summary)[0][8] or 0:,.1f}",
                    f"variants per Mb ({args.effective_target_size_mb:g} Mb)",
                )
            )
    if summary.segments:
        tiles.append((f"{len(summary.segments):,}", "copy number segments"))
    if summary.fusions:
        tiles.append((f"{len(summary.fusions):,}", "RNA fusions"))
    if summary.germline:
        tiles.append((f"{len(summary.germline):,}", "germline variants given"))
    inner = "".join(f'<div class="tile"><b>{value}</b><span>{escape(text)}</span></div>' for value, text in tiles)
    return f'<div class="tiles">{inner}</div>'


def _variant_sections(args: argparse.Namespace, command: str, summary: Summary) -> list[str]:
    every, kept = summary.by_kind(summary.calls.variants), summary.by_kind(summary.reported)
    kinds = [(kind, every[kind], kept[kind]) for kind in KINDS if every[kind]]
    notes = [
        f"{count:,} {text}"
        for count, text in (
            (summary.calls.dropped, "record(s) off chromosomes 1-22, X, Y left out"),
            (summary.calls.multiallelic, "site(s) with several alternative alleles, counted allele by allele"),
            (summary.calls.homozygous_reference, "homozygous-reference allele(s) left out"),
        )
        if count
    ]
    more = _footnote("; ".join(notes)) if notes else ""
    sections = [_chromosomes(summary)]
    sections.append(
        '<div class="pair">'
        + _section("By type", _table(("Type", "All", "Reported"), kinds) + more)
        + _section(
            "By FILTER",
            _table(("FILTER", "Variants"), [("(none)" if f == "." else f, n) for f, n in summary.by_filter()]),
        )
        + "</div>"
    )
    if command == "pcgr":
        pair = _section("Base changes", _table(("Change", "SNVs"), list(summary.substitutions().items())))
        if summary.fractions():
            pair = _histogram(summary) + pair
        sections.append(f'<div class="pair">{pair}</div>')
    spreads = [
        (name, s.count, *(Figure(f"{value:{form}}") for value in (s.least, s.median, s.mean, s.most)))
        for name, s, form in (
            ("Depth", summary.depth(), ",.0f"),
            ("Allele fraction", Spread.of(summary.fractions()), ".3f"),
        )
        if s
    ]
    if spreads:
        heads = ("Figure", "Variants", "Least", "Median", "Mean", "Most")
        sections.append(_section("Allelic support in the tumour", _table(heads, spreads)))
    genes = summary.by_gene()
    if genes:
        note = f"{len(genes):,} genes, as the VCF names them, with the number of reported variants." + (
            f" The first {LISTED}." if len(genes) > LISTED else ""
        )
        chips = "".join(f"<li>{escape(gene)} <b>{count:,}</b></li>" for gene, count in genes[:LISTED])
        sections.append(_section("Genes", f'<ul class="chips">{chips}</ul>' + _footnote(note)))
    deep, mixed = summary.depth() is not None, bool(summary.fractions())
    rows = [
        (
            *(v.fields[i] if i != 1 else int(v.fields[1]) for i in (0, 1, 3, 4)),
            v.kind,
            *([v.gene or ""] if genes else []),
            *([Figure("" if v.depth is None else f"{v.depth:,}")] if deep else []),
            *([Figure("" if v.fraction is None else f"{v.fraction:.3f}")] if mixed else []),
        )
        for v in summary.reported[:LISTED]
    ]
    if rows:
        optional = (("Gene", genes), ("Depth", deep), ("Fraction", mixed))
        columns = (
            "Chromosome",
            "Position",
            "Reference",
            "Alternative",
            "Type",
            *(name for name, has in optional if has),
        )
        note = f"The first {len(rows)} of {len(summary.reported):,}; the tables beside this page hold all."
        sections.append(_section("Variants", _table(columns, rows) + _footnote(note)))
    return sections


def _segments(summary: Summary) -> str:
    rows = [(total, count, round(bases / 1e6, 1)) for total, (count, bases) in summary.copy_numbers().items()]
    return _section("Copy number", _table(("Total copies", "Segments", "Mb"), rows))


def _chromosomes(summary: Summary) -> str:
    table = summary.by_chromosome()
    colours = [COLOURS[KINDS.index(kind)] for kind in table]
    chart = _chart(
        "StackedBar",
        colours,
        x_labels=CHROMOSOMES,
        y_labels=_ticks(max(map(sum, zip(*table.values(), strict=True)), default=1)),
    )
    for kind, row in table.items():
        chart.add(kind, row)
    legend = "".join(f'<li><i style="background:{c}"></i>{k}</li>' for k, c in zip(table, colours, strict=True))
    return _section(
        "Reported variants per chromosome", f'<figure>{_svg(chart)}</figure><ul class="legend">{legend}</ul>'
    )


def _histogram(summary: Summary) -> str:
    counts = [0] * BINS
    for fraction in summary.fractions():
        counts[max(0, min(BINS - 1, int(fraction * BINS)))] += 1
    labels = [f"{index * 100 // BINS}" if index % 4 == 0 else "" for index in range(BINS)]
    chart = _chart("Bar", COLOURS[:1], x_labels=labels, y_labels=_ticks(max(counts)), width=560, height=300)
    chart.add("variants", counts)
    caption = f"Percent, lower edge of each of {BINS} classes."
    return _section(
        "Allele fraction in the tumour", f"<figure>{_svg(chart)}<figcaption>{caption}</figcaption></figure>"
    )


def _ticks(most: int) -> list[int]:
    """Return the tick marks of an axis of counts: whole numbers, about six of them."""
    step = next(s for s in (unit * 10**power for power in range(10) for unit in (1, 2, 5)) if s * 6 >= most)
    return list(range(0, most + step, step))


def _chart(kind: str, colours: Sequence[str], **settings: Any) -> Any:
    import pygal
    from pygal.style import Style

    style = Style(
        background="transparent",
        plot_background="transparent",
        foreground="#5b6877",
        foreground_strong="#1d2733",
        foreground_subtle="#dfe5ec",
        guide_stroke_color="#dfe5ec",
        major_guide_stroke_color="#dfe5ec",
        guide_stroke_dasharray="none",
        major_guide_stroke_dasharray="none",
        opacity="1",
        opacity_hover="1",
        transition="none",
        colors=list(colours) or list(COLOURS),
        font_family='system-ui,"Segoe UI",Roboto,"DejaVu Sans",sans-serif',
        label_font_size=13,
        major_label_font_size=13,
        no_data_font_size=18,
    )
    defaults: dict[str, Any] = {
        "width": 1000,
        "height": 300,
        "margin": 6,
        "show_legend": False,
        "style": style,
        "js": [],
        "show_x_guides": False,
        "include_x_axis": True,
        "no_data_text": "no variants",
    }
    return getattr(pygal, kind)(**(defaults | settings))


def _svg(chart: Any) -> str:
    """Return the chart as SVG without pygal's script element, so that nothing runs or is loaded."""
    text = chart.render(disable_xml_declaration=True, is_unicode=True)
    return re.sub(r"<script.*?(</script>|/>)", "", text, flags=re.DOTALL)


def _section(title: str, inner: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{inner}</section>"


def _footnote(text: str) -> str:
    return f'<p class="more">{escape(text)}</p>'


def _table(heads: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    numeric = [bool(rows) and _is_numeric(rows[0][i]) for i in range(len(heads))]
    head = "".join(f"<th{' class=n' if n else ''}>{escape(text)}</th>" for text, n in zip(heads, numeric, strict=True))
    body = "".join("<tr>" + "".join(_cell(value) for value in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


class Figure(str):
    """A formatted number, aligned to the right in tables."""

    __slots__ = ()


def _is_numeric(value: Any) -> bool:
    return isinstance(value, Figure) or not isinstance(value, str)


def _cell(value: Any) -> str:
    if isinstance(value, Figure):
        return f"<td class=n>{value}</td>"
    if isinstance(value, str):
        return (
            f"<td class=long title='{escape(value)}'>{escape(value)}</td>"
            if len(value) > 24
            else f"<td>{escape(value)}</td>"
        )
    return f"<td class=n>{value:,}</td>"
