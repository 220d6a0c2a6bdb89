"""What the doctor found, as JSON and as lines to read."""

import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace

from data.doctor import DROPPED, ERRORS, WARNINGS, Manifest, characters_of, statistics, suggested_labels, usable
from data.entries import Entry, Target
from data.formats import write_entries
from data.labels import Labels
from data.utterances import Utterance


def make_report(manifests: Sequence[Manifest], labels: Labels, speakers_by: str | None) -> dict:
    """All that is known without a model, in values that JSON has."""
    problems = [row for manifest in manifests for row in problem_rows(manifest)]
    found = Counter(row["severity"] for row in problems)
    return {
        "manifests": [statistics(manifest, manifests[0]) for manifest in manifests],
        "speakers_by": speakers_by,
        "labels": label_report(manifests, labels),
        "errors": found["error"],
        "warnings": found["warning"],
        "problems": problems,
    }


def problem_rows(manifest: Manifest) -> Iterator[dict]:
    for problem in manifest.problems:
        severity = "error" if problem.kind in ERRORS else "warning"
        yield {"severity": severity, **{key: value for key, value in asdict(problem).items() if value}}


def label_report(manifests: Sequence[Manifest], labels: Labels) -> dict:
    """Characters that the labels lack, with counts, labels that nothing needs, and the labels that would fit."""
    counts = characters_of(manifests)
    return {
        "outside": {character: count for character, count in counts.most_common() if labels.unknown(character)},
        "unused": [symbol for symbol in labels.symbols[1:] if symbol not in counts],
        "suggested": suggested_labels(counts),
    }


def suspect_rows(ranked: Sequence, utterances: Sequence[Utterance]) -> list[dict]:
    """The ranking (asr/suspects.py) with what its indices stand for."""
    rows = []
    for suspect in ranked:
        utterance, loss = utterances[suspect.index], suspect.loss_per_character
        rows.append(
            {
                "where": utterance.where,
                "audio": utterance.audio,
                "loss_per_character": round(loss, 4) if math.isfinite(loss) else None,
                "transcript": utterance.text,
                "heard": suspect.heard,
            }
        )
    return rows


def write_clean(manifest: Manifest, path: str) -> dict:
    """Write what can be used, if there is anything. Returns: what was kept, and what was dropped for which reasons."""
    kept = usable(manifest)
    if kept:
        kind = "nemo" if path.lower().endswith((".json", ".jsonl")) else "csv"
        # in a CSV, transcript files stay what they are
        written = [replace(u, text=None) if kind == "csv" and u.text_path is not None else u for u in kept]
        write_entries(Target(path), kind, [Entry(utterance) for utterance in written])
    return {
        "manifest": manifest.path,
        "written": path if kept else None,
        "kept": len(kept),
        "dropped": len(manifest.examined) - len(kept),
        "why": dict(Counter(kind for examined in manifest.examined for kind in examined.kinds & DROPPED)),
    }


def report_lines(report: dict, show: int, show_suspects: int) -> Iterator[str]:
    for stats in report["manifests"]:
        yield from statistics_lines(stats)
    yield from label_lines(report["labels"])
    if len(report["manifests"]) > 1:
        told = f"by {report['speakers_by']}" if report["speakers_by"] else "not known: give --speaker-pattern to compare them"
        yield f"speakers {told}"
    for severity, kinds in (("error", ERRORS), ("warning", WARNINGS)):
        for kind in kinds:
            yield from kind_lines(severity, [row for row in report["problems"] if row["kind"] == kind], show)
    if "suspects" in report:
        yield from suspect_lines(report["suspects"], show_suspects)
    for fixed in report.get("fixed", ()):
        why = ", ".join(f"{kind} {count}" for kind, count in fixed["why"].items())
        said = f"{fixed['kept']} utterances kept, {fixed['dropped']} dropped"
        yield f"{fixed['written'] or 'nothing written'}: {said}{why and ': '}{why}"
    yield f"{report['errors']} errors, {report['warnings']} warnings"


def statistics_lines(stats: dict) -> Iterator[str]:
    rates = ", ".join(f"{rate} Hz {count}x" for rate, count in stats["sample_rates"].items())
    yield f"{stats['manifest']}: {stats['utterances']} utterances, {stats['hours']:.2f} hours; {rates or 'nothing readable'}"
    for name, title in (("seconds", "seconds"), ("characters_per_second", "characters per second")):
        if stats[name]:
            yield f"  {title}: " + ", ".join(f"{key} {value:g}" for key, value in stats[name].items())
    yield (
        f"  {stats['words']} words, {stats['distinct_words']} different, {stats['words_occurring_once']} of them once"
        f"; {stats['distinct_transcripts']} different transcripts"
    )
    repeated = ", ".join(f"{text!r} {count}x" for text, count in stats["most_repeated_transcripts"].items())
    if repeated:
        yield f"  most repeated: {repeated}"
    if "words_not_in_first" in stats:
        yield (
            f"  not in the first manifest: {stats['words_not_in_first']} words; in it as well: "
            f"{stats['transcripts_in_first']} transcripts"
        )


def label_lines(labels: dict) -> Iterator[str]:
    if labels["outside"]:
        yield "outside the labels: " + ", ".join(f"{c!r} {count}x" for c, count in labels["outside"].items())
        yield f"labels that would hold all: {json.dumps(labels['suggested'], ensure_ascii=False)}"
    if labels["unused"]:
        yield f"labels that do not occur: {' '.join(map(repr, labels['unused']))}"


def kind_lines(severity: str, rows: Sequence[dict], show: int) -> Iterator[str]:
    if not rows:
        return
    yield f"{severity}: {rows[0]['kind']}: {len(rows)}"
    yield from (f"  {row['where']}: {row['detail']}" for row in rows[:show])
    if 0 < show < len(rows):
        yield f"  and {len(rows) - show} more (--show {len(rows)} shows all, --json too)"
    yield from (f"  hint: {hint}" for hint in dict.fromkeys(row["hint"] for row in rows if "hint" in row))


def suspect_lines(rows: Sequence[dict], show: int) -> Iterator[str]:
    shown = f"{min(show, len(rows))} of {len(rows)}"
    yield f"least likely transcripts, {shown} (CTC loss per character, where, transcript, what the model hears):"
    for row in rows[:show]:
        loss = "inf" if row["loss_per_character"] is None else f"{row['loss_per_character']:.2f}"
        yield f"  {loss}\t{row['where']}\t{row['transcript']}\t{row['heard']}"
