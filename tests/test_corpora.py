"""The five corpus scripts as people type them, on miniature archives in the real layouts, made of real recordings."""

import csv
import hashlib
import importlib
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
from beeps import ROOT, hear_signals
from loopback import serving
from shared_data import AN4, SHARED, ZOO, needs_shared

from data import an4, common_voice, ted, voxforge
from data.conversion import Plan, Spoken, convert
from data.transcripts import changed_beyond_case, spoken_text, written_signs

LIBRISPEECH = SHARED / "data" / "librispeech" / "misc"
MP3 = ZOO / "native" / "common_voice_en_651325_48k.mp3"


# Helpers.


def command(script: str, *args, cwd: Path, **options) -> subprocess.CompletedProcess:
    line = [sys.executable, "-W", "error", str(script), *map(str, args)]
    environment = os.environ | {"no_proxy": "127.0.0.1"}
    return subprocess.run(line, cwd=cwd, capture_output=True, text=True, timeout=120, env=environment, **options)


def tar_gz(files: dict[str, bytes], links: dict[str, str] | None = None) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", compresslevel=1) as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        for name, aim in (links or {}).items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, aim
            tar.addfile(info)
    return buffer.getvalue()


def written(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def samples(path: Path) -> np.ndarray:
    return soundfile.read(path, dtype="int16")[0]


def encoded(wave: np.ndarray, kind: str, rate: int = 16000) -> bytes:
    """Samples (S,) int16 as a file of that kind."""
    if kind == "raw":
        return wave.astype(">i2").tobytes()
    if kind == "sph":  # NIST SPHERE: a header of 1024 bytes, then the samples
        header = f"NIST_1A\n   1024\nsample_count -i {len(wave)}\nsample_n_bytes -i 2\nchannel_count -i 1\n"
        header += f"sample_byte_format -s2 01\nsample_rate -i {rate}\nsample_coding -s3 pcm\nend_head\n"
        return header.encode().ljust(1024) + wave.astype("<i2").tobytes()
    buffer = io.BytesIO()
    soundfile.write(buffer, wave, rate, format=kind.upper(), subtype="PCM_16")
    return buffer.getvalue()


def manifest(path: Path) -> dict[str, tuple[Path, str]]:
    """Recording and transcript by the recording's name."""
    with path.open(newline="") as file:
        rows = list(csv.reader(file))
    found = {Path(audio).stem: (path.parent / audio, (path.parent / text).read_text()) for audio, text in rows}
    assert len(found) == len(rows)
    return found


def texts(path: Path) -> dict[str, str]:
    return {name: text.removesuffix("\n") for name, (_, text) in manifest(path).items()}


def report(path: Path) -> tuple[dict, list[dict]]:
    summary, *entries = map(json.loads, path.read_text().splitlines())
    for kind in ("changed", "dropped", "broken", "pruned"):
        assert summary[kind] == sum(entry["what"] == kind for entry in entries)
    return summary, entries


def state(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}


# AN4.


def an4_utterances() -> tuple[list[tuple[str, str, Path]], list[tuple[str, str, Path]]]:
    """Of ten training speakers and two of the test part, two utterances each: identifier, text, recording."""
    parts = []
    for part, folder, speakers in (("train", "an4_clstk", 10), ("test", "an4test_clstk", 2)):
        listed: dict[str, list] = {}
        for row in csv.DictReader((AN4 / f"{part}.csv").read_text().splitlines()):
            path = Path(row["audio"])
            entry = (f"{folder}/{path.parent.name}/{path.stem}", row["text"], AN4 / path)
            listed.setdefault(path.parent.name, []).append(entry)
        parts.append([entry for name in sorted(listed)[:speakers] for entry in listed[name][:2]])
    return tuple(parts)


def an4_archive(kind: str) -> bytes:
    """Laid out as an4_raw.bigendian.tar.gz (kind raw) or an4_sphere.tar.gz (kind sph)."""
    files = {}
    for part, utterances in zip(("train", "test"), an4_utterances(), strict=True):
        ids = "".join(f"{name}\n" for name, _, _ in utterances)
        lines = "".join(f"<s> {text} </s> ({name.rpartition('/')[2]})\n" for name, text, _ in utterances)
        files[f"an4/etc/an4_{part}.fileids"] = ids.encode()
        files[f"an4/etc/an4_{part}.transcription"] = lines.encode()
        files |= {f"an4/wav/{name}.{kind}": encoded(samples(path), kind) for name, _, path in utterances}
    return tar_gz(files)


def expect_an4(folder: Path, corpus: Path, ending: str) -> None:
    train, test = an4_utterances()
    made = [manifest(folder / f"an4_{part}_manifest.csv") for part in ("train", "val", "test")]
    assert [len(part) for part in made] == [18, 2, 4] and len({name[:-2] for name in made[1]}) == 2
    assert {name.split("-")[1] for name in made[0]}.isdisjoint(name.split("-")[1] for name in made[1])
    for name, text, original in train + test:
        audio, found = next(part[Path(name).name] for part in made if Path(name).name in part)
        assert audio.suffix == ending and found == text + "\n" and audio.is_relative_to(corpus)
        np.testing.assert_array_equal(samples(audio), samples(original))


@needs_shared
def test_an4_raw_from_a_server_that_cuts_then_again(tmp_path):
    with serving({"/an4/an4_raw.bigendian.tar.gz": an4_archive("raw")}) as site:
        site.cuts = [100_000]
        args = ("--base-url", f"{site.url}/an4", "--target-dir", tmp_path / "an4", "--min-duration", 0, "--num-workers", 2)
        done = command(ROOT / "data/an4.py", *args, cwd=tmp_path)
        assert done.returncode == 0 and done.stderr.count("\n") == 1 and "cut after" in done.stderr, done.stderr
        assert site.asked_for("/an4/an4_raw.bigendian.tar.gz") == [None, "bytes=100000-"]
        assert "no checksum published" in done.stdout
        expect_an4(tmp_path, tmp_path / "an4", ".wav")
        before, asked = state(tmp_path / "an4"), len(site.asked)
        again = command(ROOT / "data/an4.py", *args, cwd=tmp_path)
        assert (again.returncode, again.stderr) == (0, "") and len(site.asked) == asked
        assert state(tmp_path / "an4") == before, "nothing is made twice"
        assert done.stdout.endswith(again.stdout)


@needs_shared
def test_an4_sphere_from_inside_data_and_the_predecessors_parts(tmp_path):
    archive = written(tmp_path / "an4_sphere.tar.gz", an4_archive("sph"))
    args = ("--tar-path", archive, "--target-dir", tmp_path / "an4", "--manifest-dir", tmp_path, "--min-duration", 0)
    done = command("an4.py", *args, cwd=ROOT / "data")
    assert (done.returncode, done.stderr) == (0, "")
    expect_an4(tmp_path, tmp_path / "an4", ".sph")
    linked = manifest(tmp_path / "an4_test_manifest.csv")["an406-fcaw-b"][0]
    assert linked.stat().st_nlink == 2, "16 kHz and mono already: not encoded again"
    unpacked = tmp_path / "an4" / "unpacked" / "an4_sphere"
    before = state(unpacked)
    all_speakers = ("--source-dir", unpacked, "--val-speakers", 0, "--format", "flac")
    done = command("an4.py", *all_speakers, "--target-dir", tmp_path / "b", "--manifest-dir", tmp_path / "b", cwd=ROOT / "data")
    assert (done.returncode, done.stderr) == (0, "") and "val is the corpus's test part" in done.stdout
    assert {path.name for path in (tmp_path / "b").glob("*.csv")} == {"an4_train_manifest.csv", "an4_val_manifest.csv"}
    assert len(texts(tmp_path / "b" / "an4_val_manifest.csv")) == 4 and state(unpacked) == before
    audio = [path for path in (tmp_path / "b").rglob("*") if path.is_file() and path.parent.name == "wav"]
    assert len(audio) == 24 and {soundfile.info(path).format for path in audio} == {"FLAC"}
    summary, entries = report(tmp_path / "b" / "an4_report.jsonl")
    pruned = {entry["utterance"]: entry["seconds"] for entry in entries}
    assert summary["pruned"] == len(pruned) > 0 and max(pruned.values()) < 1
    assert {name.partition("/")[0] for name in pruned} == {"train"}, "only training samples are pruned"


@needs_shared
def test_bounds_may_be_fractions_and_nothing(tmp_path):
    source = tmp_path / "source"
    with tarfile.open(fileobj=io.BytesIO(an4_archive("raw"))) as tar:
        for entry in tar:
            written(source / entry.name, tar.extractfile(entry).read())
    (source / "an4/wav/an4_clstk/fash/an251-fash-b.raw").unlink(missing_ok=True)
    counts = []
    for low, high in ((0, 0), (1.25, 2.5), (0, 2.5)):
        args = an4.corpus_parser("", str(tmp_path / "t"), None).parse_args(
            ["--source-dir", str(source), "--manifest-dir", str(tmp_path), "--num-workers", "1", "--on-bad-data", "skip"]
        )
        args.min_duration, args.max_duration = low, high
        with an4.corpus_folder(args, "an4"):
            assert an4.make_corpus("an4", an4.read(an4.download(args)), args) == 0
        durations = [soundfile.info(audio).duration for audio, _ in manifest(tmp_path / "an4_train_manifest.csv").values()]
        assert low <= min(durations) and (not high or max(durations) <= high) and durations == sorted(durations)
        counts.append(len(durations))
        assert len(texts(tmp_path / "an4_test_manifest.csv")) == 4
    assert counts[0] > counts[2] > counts[1] > 0


# TED-LIUM.


def talk(*pieces: str) -> np.ndarray:
    return np.concatenate([samples(LIBRISPEECH / f"{name}.flac") for name in pieces])


TALKS = {
    "train": ("AlGore_2009", ("61-70968-0000", "1995-1837-0001")),
    "dev": ("BarrySchwartz_2005G", ("2412-153948-0000",)),
    "test": ("AimeeMullins_2009P", ("2412-153948-0001",)),
}
STM = """;; CATEGORY "0" "" ""
{0} 1 {0} 0.0 0.85 <o,f0,male> ignore_time_segment_in_scoring
{0} 1 {0} 0.85 2.31 <o,f0,male> thank you it 's <sil> 'cause we(2) 'd {{COUGH}} stay
{0} 1 {0} 2.31 4.005 <o,f0,male> the <unk> of things
{0} 1 {0} 1.5 3.0 so it goes
{0} 1 {0} 3.0 900.25 <o,f0,male> beyond the end
{0} 1 {0} 3.0 3.1 <o,f0,male> <unk> (applause)
"""


def ted_files(prefix: str) -> dict[str, bytes]:
    files = {}
    for part, (name, pieces) in TALKS.items():
        lines = STM if part == "train" else "".join(STM.splitlines(keepends=True)[1:5])
        files[f"{prefix}{part}/stm/{name}.stm"] = lines.format(name).encode()
        files[f"{prefix}{part}/sph/{name}.sph"] = encoded(talk(*pieces), "sph")
    return files


def expect_ted(folder: Path) -> None:
    name, pieces = TALKS["train"]
    train = manifest(folder / "ted_train_manifest.csv")
    assert {key: text for key, (_, text) in train.items()} == {
        f"{name}_00000850_00002310": "THANK YOU IT'S 'CAUSE WE'D STAY\n",
        f"{name}_00001500_00003000": "SO IT GOES\n",
    }
    cut = samples(train[f"{name}_00000850_00002310"][0])
    np.testing.assert_array_equal(cut, talk(*pieces)[13600:36960])  # 0.85 s to 2.31 s, to the sample
    for part, talk_name in (("val", TALKS["dev"][0]), ("test", TALKS["test"][0])):
        held_out = texts(folder / f"ted_{part}_manifest.csv")
        assert held_out[f"{talk_name}_00002310_00004005"] == "THE OF THINGS" and len(held_out) == 3
    summary, entries = report(folder / "ted_report.jsonl")
    assert (summary["utterances"], summary["dropped"], summary["broken"], summary["changed"]) == (11, 2, 1, 5)
    reasons = {entry["utterance"]: entry["reason"] for entry in entries if "reason" in entry}
    assert "<unk>" in reasons[f"train/{name}_00002310_00004005"] and "stm:4" in reasons[f"train/{name}_00002310_00004005"]
    assert "outside the file" in reasons[f"train/{name}_00003000_00900250"]


@needs_shared
def test_ted_release_2(tmp_path):
    archive = tar_gz(ted_files("TEDLIUM_release2/"))
    with serving({"/TEDLIUM_release2.tar.gz": archive}) as site:
        args = ("--base-url", site.url, "--target-dir", "ted", "--num-workers", 1)
        done = command(ROOT / "data/ted.py", *args, cwd=tmp_path)
    assert done.returncode == 1, "a broken recording is not passed over"
    assert done.stderr.startswith("1 broken recordings are left out; ") and "--on-bad-data skip" in done.stderr
    expect_ted(tmp_path)


@needs_shared
def test_ted_release_3_whose_legacy_parts_are_links(tmp_path):
    prefix = "TEDLIUM_release-3/"
    files = ted_files(f"{prefix}legacy/")
    links = {}
    for name in [name for name in files if name.endswith(".sph")]:
        links[name] = f"../../../data/sph/{Path(name).name}"
        files[f"{prefix}data/sph/{Path(name).name}"] = files.pop(name)
    archive = written(tmp_path / "TEDLIUM_release-3.tgz", tar_gz(files, links))
    args = ("--tar-path", archive, "--target-dir", tmp_path / "ted", "--manifest-dir", tmp_path, "--on-bad-data", "skip")
    done = command("ted.py", *args, cwd=ROOT / "data")
    assert done.returncode == 0 and "1 broken recordings are left out\n" in done.stderr
    expect_ted(tmp_path)


def test_ted_keeps_unknown_words_out_as_told_and_refuses_bad_lines(tmp_path):
    stm = written(tmp_path / "train/stm/Talk.stm", b"Talk 1 Talk 1.0 2.0 <F0_M> a <unk> b\n")
    (kept,) = ted.read(tmp_path, drop_unknown=False)
    assert (kept.text, kept.said, kept.drop) == ("a <unk> b", "a   b", "")
    for line in ("Talk 1 Talk 1.0", "Talk 1 Talk x 2.0 a", "Talk 1 Talk 2.0 1.0 a", "Talk 1 Talk nan 1.0 a"):
        stm.write_text(f"\n{line}\n")
        with pytest.raises(ValueError, match=r"Talk\.stm:2: .*expected TALK CHANNEL"):
            ted.read(tmp_path)


# VoxForge.


def voxforge_archives() -> dict[str, bytes]:
    """Five submissions: two folders for audio, prompts with and without the mfc path, one in Latin-1, one anonymous."""
    waves = [samples(LIBRISPEECH / f"{name}.flac") for name in ("61-70968-0000", "1995-1837-0001", "2412-153948-0000")]
    train, val, test = (next(n for n in SPEAKERS if voxforge.part_of(n, 0.2) == part) for part in ("train", "val", "test"))
    german = f"{train}-20090208-mul"
    submissions = {
        f"{train}-20071021-poe": ("wav", "PROMPTS", "{0}/mfc/{1} {2}", "utf-8"),
        f"{val}-20120412-hge": ("flac", "PROMPTS", "*/mfc/{1} {2}", "utf-8"),
        f"{test}-20080504-nop": ("wav", "prompts-original", "{1} {2}", "utf-8"),
        german: ("flac", "PROMPTS", "{1} {2}", "latin-1"),
        "anonymous-20080504-qrs": ("wav", "PROMPTS", "{0}/mfc/{1} {2}", "utf-8"),
    }
    archives = {}
    for submission, (kind, prompts, line, encoding) in submissions.items():
        said = "Grüße aus Köln" if submission == german else "Once, he had been well-known"
        lines = "".join(line.format(submission, f"a000{i}", said) + "\n" for i in range(len(waves)))
        files = {f"{submission}/etc/{prompts}": lines.encode(encoding), f"{submission}/LICENSE": b"GPL"}
        files |= {f"{submission}/{kind}/a000{i}.{kind}": encoded(wave, kind) for i, wave in enumerate(waves)}
        archives[f"{submission}.tgz"] = tar_gz(files)
    return archives


SPEAKERS = [f"speaker{number}" for number in range(99)]


@needs_shared
def test_voxforge_from_its_page_of_links(tmp_path):
    archives = voxforge_archives()
    links = "".join(f'<a href="{name}">{name}</a> <a href="?C=N">' for name in archives)
    pages = {"/vox/": f"<html>{links}</html>".encode(), **{f"/vox/{name}": content for name, content in archives.items()}}
    with serving(pages) as site:
        args = ("--base-url", f"{site.url}/vox/", "--target-dir", "vox", "--held-out", 0.2, "--max-duration", 0)
        done = command(ROOT / "data/voxforge.py", *args, cwd=tmp_path)
        assert (done.returncode, done.stderr) == (0, "")
        assert [done.stdout.count(f"/{name}, ") for name in archives] == [1] * 5
    parts = [texts(tmp_path / f"voxforge_{part}_manifest.csv") for part in ("train", "val", "test")]
    assert [len(part) for part in parts] == [9, 3, 3]
    assert {text for part in parts for text in part.values()} == {"GRÜSSE AUS KÖLN", "ONCE HE HAD BEEN WELL KNOWN"}
    assert {name for name in parts[0] if name.startswith("anonymous")} == {f"anonymous-20080504-qrs_a000{i}" for i in range(3)}
    summary, entries = report(tmp_path / "voxforge_report.jsonl")
    assert summary["changed"] == 12 and entries[0]["before"] == "Once, he had been well-known"


@needs_shared
def test_voxforge_from_a_folder_of_archives_and_submissions_with_gaps(tmp_path):
    archives = voxforge_archives()
    for name, content in archives.items():
        written(tmp_path / "in" / name, content)
    args = ("--tar-path", tmp_path / "in", "--target-dir", "vox", "--held-out", 0, "--num-workers", 1)
    done = command(ROOT / "data/voxforge.py", *args, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    (submission,) = (tmp_path / "vox/unpacked").glob("anonymous*/anonymous*")
    (submission / "etc/PROMPTS").write_text("x/mfc/a0000 HELLO\nx/mfc/a0009 GONE\n")
    drops = {Path(spoken.name).name[-5:]: spoken.drop for spoken in voxforge.read([submission])}
    assert drops["a0000"] == "" and "no prompt" in drops["a0001"] and "no recording" in drops["a0009"]


def test_voxforge_divides_by_speaker_not_by_submission():
    parts = [voxforge.part_of(f"{speaker}-2008{day}", 0.1) for speaker in SPEAKERS for day in ("a", "b-c")]
    assert parts[::2] == parts[1::2] and 5 < parts[::2].count("val") < 16 and 5 < parts[::2].count("test") < 16
    assert set(parts) == {"train", "val", "test"} and voxforge.part_of("Anonymous-1", 0.4) == "train"


# Common Voice.

COLUMNS = "client_id path sentence_id sentence sentence_domain up_votes down_votes age gender accents variant locale segment"
TSV = COLUMNS.replace(" ", "\t") + "\n"


def tsv(*rows: tuple[str, str, str]) -> bytes:
    return (TSV + "".join(f"{who}\t{path}\t0f\t{text}\t\t2\t0\t\t\t\t\tde\t\n" for who, path, text in rows)).encode()


def modern_archive() -> bytes:
    root = "cv-corpus-24.0-2025-12-05/de/"
    clips = {f"common_voice_de_{number}.mp3": MP3.read_bytes() for number in range(8)}
    clips["common_voice_de_7.mp3"] = MP3.read_bytes()[:-100]
    train = [
        ("anna", "common_voice_de_0.mp3", 'Er sagte: "Na, wie geht\u2019s?"'),
        ("anna", "common_voice_de_1.mp3", "Das war 1984."),
        ("bert", "common_voice_de_2.mp3", '"Ein "" Zeichen'),
        ("bert", "common_voice_de_7.mp3", "Abgebrochen"),
        ("bert", "../../../../etc/passwd.mp3", "Nein"),
    ]
    dev, test = [("cora", "common_voice_de_3.mp3", "Ja!")], [("dora", "common_voice_de_4.mp3", "Nein.")]
    others = [("cora", "common_voice_de_5.mp3", "Schon da"), ("emil", "common_voice_de_6.mp3", "Neu")]
    tables = {"train": train, "dev": dev, "test": test, "validated": [*train[:1], *dev, *test, *others]}
    files = {f"{root}{name}.tsv": tsv(*rows) for name, rows in tables.items()}
    return tar_gz(files | {f"{root}clips/{name}": content for name, content in clips.items()})


@needs_shared
def test_common_voice_of_today(tmp_path):
    with serving({"/cv-corpus-24.0-2025-12-05-de.tar.gz": modern_archive()}) as site:
        fetch = ("--base-url", site.url, "--release", "cv-corpus-24.0-2025-12-05", "--language", "de")
        done = command(ROOT / "data/common_voice.py", *fetch, "--target-dir", "cv", cwd=tmp_path)
    assert done.returncode == 1 and "common_voice_de_7.mp3: truncated" in done.stderr
    assert texts(tmp_path / "commonvoice_train_manifest.csv") == {
        "common_voice_de_0": "ER SAGTE NA WIE GEHT'S",
        "common_voice_de_2": "EIN ZEICHEN",
    }
    assert list(texts(tmp_path / "commonvoice_val_manifest.csv").values()) == ["JA"]
    assert list(texts(tmp_path / "commonvoice_test_manifest.csv").values()) == ["NEIN"]
    audio = manifest(tmp_path / "commonvoice_test_manifest.csv")["common_voice_de_4"][0]
    info, original = soundfile.info(audio), soundfile.info(MP3)
    assert (info.format, info.samplerate, info.channels, info.subtype) == ("WAV", 16000, 1, "PCM_16")
    assert abs(info.duration - original.duration) < 0.01 and original.samplerate == 48000
    reasons = [entry["reason"] for entry in report(tmp_path / "commonvoice_report.jsonl")[1] if "reason" in entry]
    assert len(reasons) == 3 and "1984" in reasons[0].replace("198", "1984") and "leads out of the corpus" in reasons[2]
    unpacked = tmp_path / "cv/unpacked/cv-corpus-24.0-2025-12-05-de/cv-corpus-24.0-2025-12-05/de"
    more = ("--source-dir", unpacked, "--files-to-process", "validated.tsv", "--keep-case", "--num-workers", 1)
    done = command(ROOT / "data/common_voice.py", *more, "--target-dir", "more", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert texts(tmp_path / "commonvoice_validated_manifest.csv") == {
        "common_voice_de_0": "Er sagte Na wie geht's",
        "common_voice_de_6": "Neu",
    }, "nobody who speaks in dev or test"


@needs_shared
def test_common_voice_release_1(tmp_path):
    header = "filename,text,up_votes,down_votes,age,gender,accent,duration\n"
    files = {}
    for part, text in (("train", "without the dataset, the article"), ("dev", '"be careful, she\'s new"'), ("test", "hello")):
        table = f"cv-valid-{part}"
        files[f"cv_corpus_v1/{table}.csv"] = f"{header}{table}/sample-000000.mp3,{json.dumps(text)},1,0,,,,\n".encode()
        files[f"cv_corpus_v1/{table}/sample-000000.mp3"] = MP3.read_bytes()
    files["cv_corpus_v1/cv-valid-dev.csv"] = (
        f'{header}cv-valid-dev/sample-000000.mp3,"""careful"", she\'s new",1,0,,,,\n'.encode()
    )
    with serving({"/cv_corpus_v1.tar.gz": tar_gz(files)}) as site:
        args = ("--base-url", site.url, "--target-dir", tmp_path / "cv", "--manifest-dir", tmp_path, "--num-workers", 1)
        done = command("common_voice.py", *args, cwd=ROOT / "data")
    assert (done.returncode, done.stderr) == (0, "")
    found = {part: texts(tmp_path / f"commonvoice_{part}_manifest.csv") for part in ("train", "val", "test")}
    assert [text["sample-000000"] for text in found.values()] == [
        "WITHOUT THE DATASET THE ARTICLE",
        "CAREFUL SHE'S NEW",
        "HELLO",
    ]
    chosen = ("--files-to-process", "cv-valid-dev.csv,cv-valid-test.csv")
    parsed = common_voice.read([tmp_path / "cv/unpacked"], None, chosen[1].split(","))
    assert [spoken.part for spoken in parsed] == ["val", "test"]


def test_common_voice_needs_to_know_the_language(tmp_path):
    for language in ("de", "fr"):
        written(tmp_path / language / "train.tsv", tsv())
    with pytest.raises(ValueError, match="one of de, fr"):
        common_voice.read([tmp_path])
    with pytest.raises(ValueError, match=r"--language en: .*one of de, fr"):
        common_voice.read([tmp_path], "en")
    with pytest.raises(ValueError, match=r"dev\.tsv: no such table"):
        common_voice.read([tmp_path], "fr")
    written(tmp_path / "fr/dev.tsv", b"a\tb\n")
    with pytest.raises(ValueError, match=r"dev\.tsv:1: columns"):
        common_voice.read([tmp_path], "fr")


# LibriSpeech.


def librispeech_archives() -> dict[str, bytes]:
    """All seven parts, a recording in each: with the speaker, chapter and transcript it really has."""
    subsets = "train-clean-100 train-clean-360 train-other-500 dev-clean dev-other test-clean test-other".split()
    archives = {}
    for subset, recording in zip(subsets, sorted(LIBRISPEECH.glob("*.flac")), strict=False):
        speaker, chapter, _ = recording.stem.split("-")
        folder = f"LibriSpeech/{subset}/{speaker}/{chapter}/"
        line = f"{recording.stem} {recording.with_suffix('.txt').read_text().strip()}\n".encode()
        files = {f"{folder}{speaker}-{chapter}.trans.txt": line, f"{folder}{recording.name}": recording.read_bytes()}
        archives[f"{subset}.tar.gz"] = tar_gz({"LibriSpeech/README.TXT": b"", **files})
    return archives


@needs_shared
def test_librispeech_all_seven_parts(tmp_path):
    archives = librispeech_archives()
    assert len(archives) == 7
    listed = "".join(f"{hashlib.md5(content).hexdigest()}  {name}\n" for name, content in archives.items())
    site_files = {"/12/md5sum.txt": listed.encode(), **{f"/12/{name}": content for name, content in archives.items()}}
    with serving(site_files) as site:
        done = command(ROOT / "data/librispeech.py", "--base-url", f"{site.url}/12/", "--max-duration", 0, cwd=tmp_path)
        assert (done.returncode, done.stderr) == (0, "") and done.stdout.count("MD5 as published") == 7
        site.files["/12/dev-clean.tar.gz"] = archives["dev-other.tar.gz"]
        wrong = ("--base-url", f"{site.url}/12/", "--target-dir", "other", "--files-to-use", "dev-clean.tar.gz")
        refused = command(ROOT / "data/librispeech.py", *wrong, cwd=tmp_path)
    assert refused.returncode == 1 and "its md5 is" in refused.stderr and refused.stderr.count("\n") == 1
    found = {part: manifest(tmp_path / f"libri_{part}_manifest.csv") for part in ("train", "val", "test_clean", "test_other")}
    assert [len(part) for part in found.values()] == [3, 2, 1, 1]
    for part in found.values():
        for name, (audio, text) in part.items():
            assert text.strip() == (LIBRISPEECH / f"{name}.txt").read_text().strip()
            assert audio.read_bytes() == (LIBRISPEECH / f"{name}.flac").read_bytes() and audio.stat().st_nlink == 2
            assert audio.is_relative_to(tmp_path / "LibriSpeech_dataset")


@needs_shared
def test_librispeech_chosen_parts_of_a_folder_of_archives(tmp_path):
    for name, content in librispeech_archives().items():
        written(tmp_path / "in" / name, content)
    chosen = ("--files-to-use", "dev-clean.tar.gz,test-other", "--tar-path", tmp_path / "in", "--format", "wav")
    done = command("librispeech.py", *chosen, "--target-dir", tmp_path / "t", "--manifest-dir", tmp_path, cwd=ROOT / "data")
    assert (done.returncode, done.stderr) == (0, "")
    assert {path.name for path in (tmp_path / "t/unpacked").iterdir() if path.is_dir()} == {"dev-clean", "test-other"}
    assert {path.name for path in tmp_path.glob("*.csv")} == {"libri_val_manifest.csv", "libri_test_other_manifest.csv"}
    ((name, (audio, _)),) = manifest(tmp_path / "libri_val_manifest.csv").items()
    assert audio.suffix == ".wav"
    np.testing.assert_array_equal(samples(audio), samples(LIBRISPEECH / f"{name}.flac"))


# Transcripts.

SPOKEN = {
    "well-known, isn't it?": "WELL KNOWN ISN'T IT",
    "  Two\tlines\nof it ": "TWO LINES OF IT",
    "It\u2019s the dogs\u2019 \u2018tail end\u2019, \u201che\u201d said": "IT'S THE DOGS' TAIL END HE SAID",
    "'Tis 'quoted' ' so": "'TIS QUOTED SO",
    "U.S.A...": "U S A",
    "cafe\u0301 na\u00efve": "CAFÉ NAÏVE",
    "soft\u00adhyphen": "SOFTHYPHEN",
    "привет, мир": "ПРИВЕТ МИР",
    "हिन्दी है।": "हिन्दी है",
    "?!...": "",
}


@pytest.mark.parametrize("text", SPOKEN)
def test_transcripts_by_the_stated_policy(text):
    assert spoken_text(text) == SPOKEN[text]


def test_case_digits_and_signs_are_explicit():
    assert spoken_text("Keep My Case, please", keep_case=True) == "Keep My Case please"
    assert written_signs("50% of $9 & 3² + one") == "50%$9&3²+" and written_signs("no, none!") == ""
    assert spoken_text("in 1984, at 5%", keep_signs=True) == "IN 1984 AT 5%"
    assert not changed_beyond_case("So  it goes", "SO IT GOES") and changed_beyond_case("So, it goes", "SO IT GOES")


# Recordings.


def converted(tmp_path: Path, audio: Path, **plan) -> tuple:
    for kind in ("wav", "txt"):
        (tmp_path / "train" / kind).mkdir(parents=True, exist_ok=True)
    settings = {"sample_rate": 16000, "format": None, "keep_case": False, "keep_signs": False, **plan}
    return convert(Spoken("train", audio.stem, str(audio), "YES"), Plan(tmp_path, **settings))


@needs_shared
@pytest.mark.parametrize("name", [p.name for p in sorted((ZOO / "broken").glob("*")) if "pocketsphinx" not in p.name])
def test_broken_recordings_are_told_and_leave_nothing(tmp_path, name):
    source = ZOO / "broken" / name
    outcome = converted(tmp_path, source)
    if outcome.broken:
        assert name in outcome.broken and outcome.audio is None and not list((tmp_path / "train").rglob("*.*"))
    else:  # headers that the reader mends
        assert outcome.duration > 0.5 and name in ("wav_data_size_zero_but_samples_follow.wav", "wav_odd_last_byte.wav")


@needs_shared
def test_what_is_right_stays_and_the_rest_is_converted(tmp_path):
    seconds = {
        row["file"]: float(row["seconds"])
        for row in csv.DictReader((ZOO / "zoo.csv").read_text().splitlines())
        if row["seconds"]
    }
    kept = {name: converted(tmp_path, ZOO / "derived" / name).audio for name in ("wav_s16_16k.wav", "sph_s16.sph")}
    assert all(Path(audio).read_bytes() == (ZOO / "derived" / name).read_bytes() for name, audio in kept.items())
    for name in ("wav_s16_44k_stereo.wav", "flac_8k.flac", "mp3_16k_cbr.mp3", "opus_48k.opus"):
        outcome = converted(tmp_path, ZOO / "derived" / name, format="flac")
        info = soundfile.info(outcome.audio)
        assert (info.format, info.samplerate, info.channels, info.subtype) == ("FLAC", 16000, 1, "PCM_16")
        assert abs(info.duration - seconds[f"derived/{name}"]) < 0.05
    loud = converted(tmp_path, ZOO / "derived" / "wav_f32_over_full_scale.wav", format="flac")
    assert np.abs(samples(loud.audio).astype(int)).max() >= 32767, "clipped, not wrapped around"


# The command line.


@pytest.mark.parametrize("script", "an4 ted voxforge common_voice librispeech".split())
def test_help_and_bad_use(tmp_path, script):
    code = (
        "import runpy, sys\n"
        f"sys.argv = [{f'{script}.py'!r}, '--help']\n"
        "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "except SystemExit as stop: assert stop.code in (0, None)\n"
        "assert not {'torch', 'scipy', 'librosa'} & sys.modules.keys()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT / "data", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    flags = "--target-dir --sample-rate --min-duration --max-duration --tar-path --source-dir --base-url --format --keep-case"
    assert all(flag in done.stdout for flag in flags.split())
    main = importlib.import_module(f"data.{script}").main
    for args in (["--sample-rate", "x"], ["--min-duration", "-1"], ["--max-duration", "0.5"], ["--base-url", "ftp://x"]):
        with pytest.raises(SystemExit) as stopped:
            main([*args, "--target-dir", str(tmp_path / "new")])
        assert stopped.value.code == 2
    with pytest.raises(SystemExit):
        main(["--tar-path", "a", "--source-dir", "b"])
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("script", "args", "status", "named"),
    [
        ("an4", ["--tar-path", "nix.tar.gz"], 1, "--tar-path nix.tar.gz"),
        ("ted", ["--source-dir", "nix"], 1, "--source-dir nix"),
        ("ted", ["--source-dir", "."], 1, "train/stm is not there"),
        ("voxforge", ["--source-dir", "."], 1, "no submission"),
        ("voxforge", ["--tar-path", "."], 1, "no archive in it"),
        ("common_voice", ["--source-dir", "."], 1, "is this Common Voice"),
        ("common_voice", ["--language", "de"], 2, "--tar-path"),
        ("librispeech", ["--source-dir", "."], 1, "nothing of train-clean-100"),
        ("librispeech", ["--files-to-use", "dev-dirty"], 2, "--files-to-use"),
        ("an4", ["--source-dir", ".", "--val-speakers", "-1"], 2, "--val-speakers"),
    ],
)
def test_what_is_missing_is_one_line(tmp_path, monkeypatch, capsys, script, args, status, named):
    monkeypatch.chdir(tmp_path)
    main = importlib.import_module(f"data.{script}").main
    try:
        assert main([*args, "--target-dir", str(tmp_path / "corpus")]) == status
    except SystemExit as stopped:
        assert stopped.code == status
    printed = capsys.readouterr()
    assert named in printed.err and printed.err.count("\n") == 1


@needs_shared
def test_a_folder_of_something_else_is_left_alone(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    archive = written(tmp_path / "an4.tar.gz", an4_archive("sph"))
    flags = ["--tar-path", str(archive), "--target-dir", "t", "--num-workers", "1"]
    assert an4.main(flags) == 0
    before = state(tmp_path)
    for other in (["--sample-rate", "8000"], ["--format", "flac"]):
        assert an4.main([*flags, *other]) == 1 and "another --target-dir" in capsys.readouterr().err
    written(archive, archive.read_bytes() + bytes(100))
    assert an4.main(flags) == 1 and f"unpacked from another {archive.name}" in capsys.readouterr().err
    del before[str(archive)]
    archive.unlink()
    assert state(tmp_path) == before


@needs_shared
@pytest.mark.parametrize("ends", [signal.SIGINT, signal.SIGKILL])
def test_interrupted_then_finished(tmp_path, ends):
    """Ctrl-C while recordings are converted, or kill -9: no process, no half file stays, and the rest follows later."""
    many = [("anna", f"common_voice_de_{number}.mp3", "Ja") for number in range(200)]
    source = tmp_path / "de"
    for name in ("train", "dev", "test"):
        written(source / f"{name}.tsv", tsv(*(many if name == "train" else ())))
    written(source / "clips" / many[0][1], MP3.read_bytes())
    for _, name, _ in many[1:]:
        os.link(source / "clips" / many[0][1], source / "clips" / name)
    line = [sys.executable, "-W", "error", str(ROOT / "data/common_voice.py"), "--source-dir", str(source)]
    line += ["--target-dir", "cv", "--num-workers", "2"]
    made = tmp_path / "cv/train/wav"
    with subprocess.Popen(
        line, cwd=tmp_path, stderr=subprocess.PIPE, text=True, start_new_session=True, preexec_fn=hear_signals
    ) as process:
        deadline = time.monotonic() + 60
        while len(list(made.glob("*.wav"))) < 10 and time.monotonic() < deadline:
            time.sleep(0.005)
        if ends == signal.SIGINT:
            os.killpg(process.pid, ends)  # a terminal interrupts the whole group
        else:
            process.kill()
        stderr = process.communicate(timeout=60)[1]  # ends when no process holds the pipe any more
    if ends == signal.SIGINT:
        assert (process.returncode, stderr) == (130, "interrupted: the same command goes on from here\n")
        assert not list(made.glob(".*"))
    left = state(made)
    assert 10 <= len(left) < 200 and not list(tmp_path.glob("*.csv"))
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(texts(tmp_path / "commonvoice_train_manifest.csv")) == 200
    now = state(made)
    assert not list(made.glob(".*")), "what a killed process left half-written is swept"
    assert all(now[path] == where for path, where in left.items() if not Path(path).name.startswith("."))
